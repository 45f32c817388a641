"""Parameter groups with layer-wise learning-rate decay, and the warm-up + cosine schedule.

Official counterparts: `util/lr_decay.py` (fine-tuning), timm's `add_weight_decay` (pretraining), `util/lr_sched.py`.
No architecture is known here: a model declares `no_weight_decay()`, `layer_id(name)` and `num_layer_ids()`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups ``{"params", "lr_scale", "weight_decay"}``, each parameter in exactly one.

    Parameters with one dimension, and those in ``model.no_weight_decay()``, go without weight decay. With a layer decay
    d below 1, layer i of L layer ids learns at ``d ** (L - 1 - i)`` times the learning rate (head: 1).

    Raises:
        ValueError: a layer decay for a model that does not declare its layer ids.
    """
    if layer_decay != 1.0 and not hasattr(model, "layer_id"):
        raise ValueError(f"layer_decay: {type(model).__name__} declares no layer ids; use --layer_decay 1.0")
    without_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in without_decay else weight_decay
        scale = layer_decay ** (model.num_layer_ids() - 1 - model.layer_id(name)) if layer_decay != 1.0 else 1.0
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], peak_lr: float, betas: Sequence[float]) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, each at ``peak_lr * lr_scale``; fused kernels where every device has them."""
    for group in groups:
        group["lr"] = peak_lr * group["lr_scale"]
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=peak_lr, betas=(betas[0], betas[1]), fused=fused)


def learning_rate(epoch: float, peak_lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Learning rate at a fractional epoch: linear from 0 to ``peak_lr``, then half a cosine down to ``min_lr``.

    ``peak_lr`` is the base learning rate x effective batch / 256.
    """
    if epoch < warmup_epochs:
        return peak_lr * epoch / warmup_epochs
    progress = min((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12), 1.0)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine(
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    peak_lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
) -> LambdaLR:
    """`learning_rate` as a scheduler that is stepped once an optimiser step; it scales every group alike."""

    def share_of_peak(step: int) -> float:
        return learning_rate(step / steps_per_epoch, peak_lr, min_lr, warmup_epochs, epochs) / peak_lr

    return LambdaLR(optimizer, share_of_peak)


def schedule_length(
    steps_per_epoch: int, epochs: float, warmup_epochs: float, max_steps: int | None
) -> tuple[int, float, float]:
    """Total steps, epochs and warm-up epochs of a run.

    ``max_steps`` replaces the number of epochs as the length of the schedule; the warm-up keeps its share of it.
    """
    if max_steps is None:
        # 0.07 epochs of 100 steps are 7 steps, and 7.000000000000001 in floating point
        return math.ceil(epochs * steps_per_epoch - 1e-6), epochs, warmup_epochs
    shortened = max_steps / steps_per_epoch
    return max_steps, shortened, warmup_epochs * shortened / epochs
