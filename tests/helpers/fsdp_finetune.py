"""scripts/run_finetune.py under FSDP2 on a CPU: torch runs it over gloo, Accelerate offers it to accelerators only."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from livt_hf.cli import main

start = PartialState.__init__


def start_as_gpus(self, *args, **kwargs):  # TrainingArguments initializes it again
    start(self, *args, **kwargs)
    self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = start_as_gpus
sys.exit(main(["finetune", *sys.argv[1:]]))
