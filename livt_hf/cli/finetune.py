"""Stage 2: balanced fine-tuning and evaluation (also scripts/run_finetune.py)."""

from __future__ import annotations

import os

from ..config.arguments import FinetuneArguments
from .console import read_stage

EXAMPLES = (
    "livt finetune --dataset photos --pretrained mae --output_dir classifier",
    "accelerate launch scripts/run_finetune.py --recipe digits --pretrained mae --output_dir classifier",
)


def run(argv: list[str]) -> int:
    args, training_arguments = read_stage(FinetuneArguments, argv, "livt finetune", __doc__, EXAMPLES)
    from ..training.finetuning import finetune

    results = finetune(args, training_arguments)
    if results is not None and int(os.environ.get("RANK", 0)) == 0:
        from ..reporting.evaluation_report import accuracy_table

        print(accuracy_table(results))
    return 0
