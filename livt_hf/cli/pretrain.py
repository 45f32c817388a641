"""Stage 1: masked generative pretraining (also scripts/run_mae.py)."""

from __future__ import annotations

from ..config.arguments import PretrainArguments
from .console import read_stage

EXAMPLES = (
    "livt pretrain --dataset photos --model_size s --epochs 200 --output_dir mae",
    "accelerate launch scripts/run_mae.py --recipe digits --output_dir mae",
)


def run(argv: list[str]) -> int:
    args, _ = read_stage(PretrainArguments, argv, "livt pretrain", __doc__, EXAMPLES)
    from ..training.pretraining import pretrain

    pretrain(args)
    return 0
