"""How a stage runs a model that it does not train: on which device, and in which precision.

Trainer, which decides both for training, is not there yet.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from ..evaluation.predictions import choose_device
from .stage_run import check_precision


def local_device() -> str:
    """The device of this process: with ACCELERATE_USE_CPU the CPU, else the GPU that the launcher gives it, if any."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return "cpu"
    return choose_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")


def frozen_precision(mixed_precision: str | None) -> AbstractContextManager:
    """The autocast of ``--mixed_precision``, by default that of `accelerate launch`; ValueError for fp16 on a CPU."""
    chosen = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    check_precision(chosen)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen)
    return torch.autocast(torch.device(local_device()).type, dtype, enabled=dtype is not None)
