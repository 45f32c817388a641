"""scripts/run_mae.py under FSDP2 on a CPU: torch runs it over gloo, Accelerate offers it to accelerators only."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from livt_hf.cli import main

PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
sys.exit(main(["pretrain", *sys.argv[1:]]))
