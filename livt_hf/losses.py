"""Classification losses for long-tailed data, as small pure functions and one table of names.

Legend: B batch, C classes, z logits (B, C), t targets (B, C), b logit bias (C,).

    ce        softmax cross-entropy
    bal_ce    the same of z + tau * log pi                         LiVT Theorem 1, Eq. 3 (Ren et al., NeurIPS 2020)
    bce       sigmoid cross-entropy over all classes               LiVT Eq. 5
    bal_bce   the same of z + tau * (log pi - log(1 - pi))         LiVT Theorem 2, Eq. 6

The BCE family is summed over classes and averaged over the batch, as the official code has it. Everything is computed
in float32, also under autocast. The biases come from `ClassPrior`; they act in training only: logits at inference are
the unadjusted ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .prior import ClassPrior

ClassCounts = Mapping[str, int] | Sequence[int]
Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of ``-sum_i t_i log softmax(z)_i``; logits and targets are float32 (B, C)."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Sum over classes, mean over the batch of ``-w_i [t_i log s(z_i) + (1 - t_i) log(1 - s(z_i))]`` (LiVT Eq. 5, 6).

    Logits and targets are float32 (B, C), ``class_weights`` w is float32 (C,), by default all ones.
    """
    per_class = F.binary_cross_entropy_with_logits(logits, targets, weight=class_weights, reduction="none")
    return per_class.sum(dim=-1).mean()


def smooth_one_hot(targets: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Targets as float32 rows (B, C).

    Hard labels (int64, shape (B,)) become ``(1 - s) * one_hot + s / C``; soft targets (float, shape (B, C)) stay as
    they are, because whoever mixed them has smoothed them already.

    Raises:
        ValueError: wrong shape or dtype.
    """
    if targets.is_floating_point():
        if targets.ndim != 2 or targets.shape[1] != num_classes:
            raise ValueError(f"targets: soft targets need shape (B, {num_classes}), got {tuple(targets.shape)}")
        return targets.float()
    if targets.ndim != 1:
        raise ValueError(f"targets: hard labels need shape (B,), got {tuple(targets.shape)}")
    one_hot = F.one_hot(targets.long(), num_classes).float()
    return one_hot * (1.0 - label_smoothing) + label_smoothing / num_classes


# name -> (cross-entropy on biased logits, the prior's bias for it or None)
_LOSSES: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "ce": (softmax_cross_entropy, None),
    "bce": (sigmoid_cross_entropy, None),
    "bal_ce": (softmax_cross_entropy, "log_prior"),
    "bal_bce": (sigmoid_cross_entropy, "log_odds"),
}
LOSS_NAMES = tuple(_LOSSES)


def check_loss_name(name: str) -> str:
    """Return ``name``; ValueError with the nearest known name if it is unknown."""
    if name not in _LOSSES:
        near = difflib.get_close_matches(str(name).replace("-", "_").lower(), LOSS_NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"loss: {name!r} is unknown; {hint} known: {', '.join(LOSS_NAMES)}".replace(";  ", "; "))
    return name


def build_loss(
    name: str,
    class_counts: ClassCounts,
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """A callable ``(logits (B, C) of any float dtype, targets) -> float32 scalar``.

    Targets are hard labels, int64 (B,), or soft ones, float (B, C).

    Args:
        name: one of `LOSS_NAMES`.
        class_counts: training images of each class (see `ClassPrior`); integer label ``i`` is the i-th class.
        tau: scale of the logit bias (LiVT Algorithm 1, line 16); losses without a bias ignore it.
        label_smoothing: for hard labels only.
        class_weights: the ``w_i`` of Eq. 6, length C, default all 1; for the BCE family only.

    Raises:
        ValueError: unknown name, unusable counts, smoothing outside [0, 1), weights that do not fit.
    """
    function, bias_name = _LOSSES[check_loss_name(name)]
    prior = ClassPrior(class_counts)
    num_classes = len(prior)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: must be in [0, 1), got {label_smoothing}")
    if not np.isfinite(tau):
        raise ValueError(f"tau: must be a finite number, got {tau}")
    options = {}
    if class_weights is not None:
        if function is not sigmoid_cross_entropy:
            raise ValueError(f"class_weights: only the BCE family (bce, bal_bce) takes them, the loss is {name!r}")
        if len(class_weights) != num_classes:
            raise ValueError(f"class_weights: {len(class_weights)} weights for {num_classes} classes")
        options["class_weights"] = torch.tensor(class_weights, dtype=torch.float32)
    # Rounded to float32 once, from float64.
    bias = None if bias_name is None else torch.from_numpy(tau * getattr(prior, bias_name)).float()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal bias, options
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(f"logits: need shape (B, {num_classes}), one column a class, got {tuple(logits.shape)}")
        with torch.autocast(device_type=logits.device.type, enabled=False):
            scores = logits.float()
            if bias is not None:
                bias = bias.to(scores.device)  # a copy the first time only
                scores = scores + bias
            options = {key: value.to(scores.device) for key, value in options.items()}
            return function(scores, smooth_one_hot(targets, num_classes, label_smoothing), **options)

    return loss
