"""Parameter groups with layer-wise learning-rate decay, warmup + cosine schedule, moving average of the weights.

Official counterparts: `util/lr_decay.py` (fine-tuning), timm's `add_weight_decay` (pretraining), `util/lr_sched.py`.
Nothing here depends on the architecture: a model may declare `no_weight_decay()` and `layer_id(name)`; otherwise both
are inferred from its module tree and parameter names (`layer_ids`, `names_without_weight_decay`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

EMA_FILE = "ema.safetensors"  # in a checkpoint, beside the trained weights


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups ``{"params", "lr_scale", "weight_decay"}``, each parameter in exactly one.

    One-dimensional parameters and those of `names_without_weight_decay` have no weight decay. ``lr_scale`` of a
    parameter of layer i (`layer_ids`) is ``layer_decay ** (largest layer - i)``, 1 for the head.

    Raises:
        ValueError: ``layer_decay`` is not 1, and no blocks are found in the model.
    """
    without_decay = names_without_weight_decay(model)
    layers = layer_ids(model) if layer_decay != 1.0 else {}
    top = max(layers.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in without_decay else weight_decay
        scale = layer_decay ** (top - layers.get(name, top))
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def layer_ids(model: nn.Module) -> dict[str, int]:
    """``{parameter name: layer id}``, as declared by the model or by one rule for all image models.

    The blocks of `block_names`, over all stages, are layers 1 to n. Modules registered before the first block (patch
    embedding, tokens, positions) are layer 0, those after the last (final norm, pooler, classifier) n + 1, and those
    between two blocks (downsampling) belong to the block that follows.

    This is BEiT's and MAE's convention for ViTs (`get_num_layer_for_vit`; BEiT's shared position bias is n + 1). timm's
    `param_groups_layer_decay` differs only in the final norm, which it assigns to the last block.

    Raises:
        ValueError: no blocks are found.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "layer_id"):
        layer_id: Any = model.layer_id
        return {name: layer_id(name) for name in names}
    blocks = [f"{block}." for block in block_names(model)]
    if not blocks:
        raise ValueError(f"layer_decay: no blocks were found in {type(model).__name__}; use --layer_decay 1.0")
    layers, seen = {}, 0
    for name in names:
        if seen < len(blocks) and name.startswith(blocks[seen]):
            seen += 1
        inside = seen > 0 and name.startswith(blocks[seen - 1])
        layers[name] = seen if inside or seen == 0 else seen + 1
        if "shared_position_bias" in name:
            layers[name] = len(blocks) + 1
    return layers


def block_names(module: nn.Module, path: str = "", depth: int = 2) -> list[str]:
    """Names of the residual blocks in order: the members of lists of blocks, or of lists nested in these (stages).

    A list of blocks is a ModuleList or Sequential whose members are all of one class that is not from torch.nn.
    """
    members = list(module.named_children())
    if not _is_list_of_blocks(module):
        return [name for child, part in members for name in block_names(part, f"{path}.{child}".lstrip("."), depth)]
    found = []
    for number, member in members:
        name = f"{path}.{number}".lstrip(".")
        found += (block_names(member, name, depth - 1) if depth > 1 else []) or [name]
    return found


def _is_list_of_blocks(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    classes = {type(member) for member in module.children()}
    own = [kind for kind in classes if kind in (nn.ModuleList, nn.Sequential) or "torch.nn" not in kind.__module__]
    return len(classes) == len(own) == 1


# Tokens and positions, by their names in transformers; timm and the official code do not decay them either.
_WITHOUT_DECAY = {
    "cls_token",
    "distillation_token",
    "mask_token",
    "register_tokens",
    "position_embeddings",
    "relative_position_bias_table",
    "position_embedding.weight",  # CLIP, SigLIP
}


def names_without_weight_decay(model: nn.Module) -> set[str]:
    """Names declared by `no_weight_decay()` of the model or of its submodules; otherwise tokens and positions."""
    declaring = [(path, module) for path, module in model.named_modules() if hasattr(module, "no_weight_decay")]
    if declaring:
        return {f"{path}.{name}".lstrip(".") for path, module in declaring for name in module.no_weight_decay()}
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if any(f".{name}".endswith(f".{ending}") for ending in _WITHOUT_DECAY)}


def adamw(groups: list[dict[str, Any]], peak_lr: float, betas: Sequence[float]) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, each at ``peak_lr * lr_scale``; fused if all devices support it."""
    return torch.optim.AdamW(_scaled(groups, peak_lr), lr=peak_lr, betas=(betas[0], betas[1]), fused=_fusible(groups))


def sgd(groups: list[dict[str, Any]], peak_lr: float, momentum: float) -> torch.optim.SGD:
    """SGD with momentum, otherwise as `adamw`; weight decay is L2 regularization, added to the gradient."""
    return torch.optim.SGD(_scaled(groups, peak_lr), lr=peak_lr, momentum=momentum, fused=_fusible(groups))


def _scaled(groups: list[dict[str, Any]], peak_lr: float) -> list[dict[str, Any]]:
    for group in groups:
        group["lr"] = peak_lr * group["lr_scale"]
    return groups


def _fusible(groups: list[dict[str, Any]]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters, and the buffers that a checkpoint holds, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def learning_rate(epoch: float, peak_lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Learning rate at a fractional epoch: linear warmup from 0 to ``peak_lr``, then cosine decay to ``min_lr``.

    ``peak_lr`` is the base learning rate x effective batch size / 256.
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
    """`learning_rate` as a scheduler to be stepped once per optimizer step; it scales all groups equally."""

    def fraction_of_peak(step: int) -> float:
        return learning_rate(step / steps_per_epoch, peak_lr, min_lr, warmup_epochs, epochs) / peak_lr

    return LambdaLR(optimizer, fraction_of_peak)


def schedule_length(
    steps_per_epoch: int, epochs: float, warmup_epochs: float, max_steps: int | None
) -> tuple[int, float, float]:
    """Total steps, epochs and warmup epochs of a run.

    ``max_steps`` replaces the number of epochs as the length of the schedule; the warmup remains the same fraction.
    """
    if max_steps is None:
        # 0.07 epochs of 100 steps are 7 steps, and 7.000000000000001 in floating point
        return math.ceil(epochs * steps_per_epoch - 1e-6), epochs, warmup_epochs
    shortened = max_steps / steps_per_epoch
    return max_steps, shortened, warmup_epochs * shortened / epochs


@dataclass(frozen=True)
class Schedule:
    """Length of a run and its learning rate.

    Attributes:
        steps: number of optimizer steps.
        global_batch_size: images per optimizer step, over all processes and accumulation steps.
        peak_lr: base learning rate x global batch size / 256.
    """

    steps: int
    epochs: float
    warmup_epochs: float
    steps_per_epoch: int
    global_batch_size: int
    peak_lr: float
    min_lr: float

    @classmethod
    def plan(
        cls,
        steps_per_epoch: int,
        global_batch_size: int,
        *,
        epochs: float,
        warmup_epochs: float,
        max_steps: int | None,
        base_lr: float,
        min_lr: float,
    ) -> Schedule:
        """The schedule of a run; arguments as in `schedule_length`."""
        length = schedule_length(steps_per_epoch, epochs, warmup_epochs, max_steps)
        return cls(*length, steps_per_epoch, global_batch_size, base_lr * global_batch_size / 256, min_lr)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """See `warmup_cosine`."""
        steps, peak_lr, min_lr = self.steps_per_epoch, self.peak_lr, self.min_lr
        return warmup_cosine(optimizer, steps, peak_lr, min_lr, self.warmup_epochs, self.epochs)


class WeightAverage:
    """Exponential moving average (EMA) of a model's trained weights and buffers. Every process keeps an equal copy.

    Args:
        decay: weight of the old average in an update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: {decay} is out of range; it must be at least 0 and below 1")
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the current weights; tensors of integers are copied."""
        averages, weights = [], []
        for name, tensor in trained_state(model).items():
            average = self.weights[name]
            if average.is_floating_point():
                averages.append(average)
                weights.append(tensor.to(average))
            else:
                average.copy_(tensor)
        get_ema_multi_avg_fn(self.decay)(averages, weights, 0)  # few kernels for all tensors

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Context in which the model has the averaged weights; its own are restored afterwards, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}
        model.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def save(self, folder: Path) -> None:
        """Write the average to `EMA_FILE` in a folder."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.weights.items()}
        save_file(weights, folder / EMA_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """Load the average of a checkpoint; without one, start from the weights of ``model``."""
        file = folder / EMA_FILE
        saved = load_file(file) if file.is_file() else model.state_dict()
        for name, average in self.weights.items():
            average.copy_(saved[name])
