"""Classification losses for long-tailed data: pure functions, and one table of their names.

Legend: B batch, C classes, z logits (B, C), t targets (B, C), y labels (B,), n_i images of class i, pi_i = n_i / sum n.

    ce        softmax cross-entropy
    bal_ce    ce of z + tau * log pi                               LiVT Theorem 1, Eq. 3 (Ren et al., NeurIPS 2020)
    bce       sigmoid cross-entropy over all classes               LiVT Eq. 5
    bal_bce   bce of z + tau * (log pi - log(1 - pi))              LiVT Theorem 2, Eq. 6
    cb_ce     ce, classes weighted by their effective number       Cui et al., CVPR 2019: (1 - beta) / (1 - beta^n_i)
    cb_bce    bce, weighted in the same way
    focal     ce, each image weighted by (1 - p_y)^gamma           Lin et al., ICCV 2017, Eq. 4
    ldam      ce with a margin m_y ~ n_y^(-1/4) on the label       Cao et al., NeurIPS 2019
    las       ce with smoothing s_y that grows with n_y            Zhong et al., CVPR 2021 (MiSLAS)
    lade      bal_ce plus a regularizer of the raw logits          Hong et al., CVPR 2021

All losses take hard labels, int64 (B,); all but lade also soft targets, float (B, C) with rows that sum to 1. Of a soft
row, ldam and las use the two largest entries only, those of the two mixed images, as in the official LiVT code.
``label_smoothing`` applies to hard labels; soft targets are assumed to be smoothed already.

The BCE family is summed over classes and averaged over the batch, as in the official code. All losses are computed in
float32, also under autocast. Biases, margins and weights act in training only; inference uses the raw logits.

Known deviations from the official code: its Bal-BCE ignores ``bal_tau`` and exists only with mixup; its BCE option
crashes; its LADE is the regularizer alone (`lade_regularizer`), without the cross-entropy.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .class_names import class_names, counts_in_order
from .config.options import did_you_mean
from .prior import ClassPrior

ClassCounts = Mapping[str, int] | Sequence[int]
Loss = Callable[[Tensor, Tensor], Tensor]

# ---- The losses. Logits are float32 (B, C), targets int64 (B,) or float32 rows (B, C); smoothing is 0 for rows.


def softmax_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, bias: Tensor | float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over the batch of ``-sum_i w_i t_i log softmax(z + b)_i``, with torch's convention for weights.

    With weights and hard labels, the sum over the batch is divided by ``sum_b w[y_b]`` and so depends on which images
    share a micro-batch; with weights and soft targets, it is divided by B.
    """
    return F.cross_entropy(logits + bias, targets, weight=class_weights, label_smoothing=smoothing)


def sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, bias: Tensor | float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Sum over classes, mean over the batch of ``-w_i [t_i log s(z_i + b_i) + (1 - t_i) log(1 - s(z_i + b_i))]``."""
    rows = target_rows(targets, logits, smoothing)
    per_class = F.binary_cross_entropy_with_logits(logits + bias, rows, weight=class_weights, reduction="none")
    return per_class.sum(dim=-1).mean()


def focal(logits: Tensor, targets: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Mean over the batch of ``-sum_i t_i (1 - p_i)^gamma log p_i``, ``p = softmax(z)``: Eq. 4, for many classes."""
    log_p = F.log_softmax(logits, dim=-1)
    # 1 - p without cancellation; kept above 0, where the slope of a power below 1 is infinite.
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(target_rows(targets, logits, smoothing) * miss**gamma * log_p).sum(dim=-1).mean()


def ldam(
    logits: Tensor, targets: Tensor, smoothing: float, margins: Tensor, scale: float, class_weights: Tensor | None
) -> Tensor:
    """Cross-entropy of ``scale * (z - margin_y e_y)``; ``class_weights`` as in `softmax_cross_entropy`."""

    def of_labels(labels: Tensor) -> Tensor:  # (B,) -> (B,)
        shifted = scale * (logits - margins * one_hot(labels, logits))
        return F.cross_entropy(shifted, labels, weight=class_weights, label_smoothing=smoothing, reduction="none")

    per_image = sum_over_mixed_labels(of_labels, targets)
    if class_weights is None or targets.is_floating_point():
        return per_image.mean()
    return per_image.sum() / class_weights[targets].sum()


def label_aware_smoothing(logits: Tensor, targets: Tensor, smoothing: float, class_smoothing: Tensor) -> Tensor:
    """Mean of ``-[(1 - s_y) log p_y + s_y mean_i log p_i]``; uniform label smoothing is added to ``s``."""
    log_p = F.log_softmax(logits, dim=-1)

    def of_labels(labels: Tensor) -> Tensor:  # (B,) -> (B,)
        s = 1.0 - (1.0 - class_smoothing[labels]) * (1.0 - smoothing)
        return -((1.0 - s) * log_p.gather(1, labels[:, None]).squeeze(1) + s * log_p.mean(dim=1))

    return sum_over_mixed_labels(of_labels, targets).mean()


def lade_regularizer(logits: Tensor, labels: Tensor, log_prior: Tensor, remine_lambda: float = 0.1) -> Tensor:
    """``-sum_c pi_c [mean_{b: y_b = c} z_bc - E_c - lambda E_c^2]``, ``E_c = log mean_b exp(z_bc) / (C pi_c)``.

    The regularized Donsker-Varadhan bound of each class; the first term is 0 for a class absent from the batch. The
    sum is over one micro-batch: accumulation averages the regularizers.
    """
    num_images, num_classes = logits.shape
    of_class = one_hot(labels, logits)  # (B, C)
    own = (logits * of_class).sum(dim=0) / of_class.sum(dim=0).clamp_min(1)  # (C,)
    bound = torch.logsumexp(logits - log_prior - math.log(num_classes), dim=0) - math.log(num_images)  # (C,)
    return -(log_prior.exp() * (own - bound - remine_lambda * bound**2)).sum()


def lade(
    logits: Tensor, labels: Tensor, smoothing: float, log_prior: Tensor, tau: float, alpha: float, remine_lambda: float
) -> Tensor:
    """Cross-entropy of ``z + tau log pi`` plus ``alpha`` times the regularizer of z."""
    if labels.is_floating_point():
        raise ValueError("targets: the loss 'lade' is defined for hard labels only; train without mixup and cutmix")
    cross_entropy = softmax_cross_entropy(logits, labels, smoothing, tau * log_prior)
    return cross_entropy + alpha * lade_regularizer(logits, labels, log_prior, remine_lambda)


# ---- Targets


def target_rows(targets: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Rows (B, C): ``(1 - s) * one_hot + s / C`` of hard labels; soft targets are returned unchanged."""
    if targets.is_floating_point():
        return targets
    return one_hot(targets, logits) * (1.0 - smoothing) + smoothing / logits.shape[1]


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Rows of the dtype and shape (B, C) of the logits. Unlike torch's, it never reads labels on the host."""
    return (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)


def sum_over_mixed_labels(of_labels: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
    """Per-image loss (B,): ``loss(y)`` of a hard label, or ``sum_y t_y loss(y)`` over the two largest entries of a row.

    For a row that was smoothed but not mixed, `torch.topk` picks the second class; its weight is s / C.
    """
    if not targets.is_floating_point():
        return of_labels(targets)
    weights, labels = targets.topk(2, dim=1)  # (B, 2) each
    return weights[:, 0] * of_labels(labels[:, 0]) + weights[:, 1] * of_labels(labels[:, 1])


def checked_targets(targets: Tensor, num_classes: int, values: bool = True) -> Tensor:
    """Targets as int64 (B,) or float32 (B, C); ValueError for a wrong shape or, with ``values``, content."""
    if not targets.is_floating_point():
        if targets.ndim != 1:
            raise ValueError(f"targets: hard labels need shape (B,), got {tuple(targets.shape)}")
        wrong = targets[(targets < 0) | (targets >= num_classes)] if values else targets[:0]
        if len(wrong):
            raise ValueError(
                f"targets: label {wrong[0]} is out of range; {num_classes} classes have labels 0 to {num_classes - 1}"
            )
        return targets.long()
    if targets.ndim != 2 or targets.shape[1] != num_classes:
        raise ValueError(f"targets: soft targets need shape (B, {num_classes}), got {tuple(targets.shape)}")
    targets = targets.float()
    if values:
        sums = targets.sum(dim=1)
        wrong = sums[~((sums - 1).abs() <= 0.01)]  # rows in bfloat16 are off by up to 0.004; NaN fails, too
        if len(wrong):
            raise ValueError(f"targets: each row of soft targets must sum to 1, one sums to {wrong[0]:.4g}")
    return targets


# ---- Per-class weights, margins and smoothing: float64 arrays (C,)


def effective_number_weights(class_counts: ClassCounts, beta: float = 0.9999) -> np.ndarray:
    """``(1 - beta) / (1 - beta^n)``, normalized to sum to C (Cui et al.; beta as in the official LiVT code).

    ``beta = 0`` gives weights of 1, ``beta -> 1`` inverse class frequencies.
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta: must be in [0, 1), got {beta}")
    weights = 1.0 / (1.0 - np.power(float(beta), ClassPrior(class_counts).counts))
    return weights / weights.sum() * len(weights)


def balanced_weights(class_counts: ClassCounts) -> np.ndarray:
    """Inverse class frequencies, ``N / (C n_i)``: ``class_weight="balanced"`` of scikit-learn."""
    counts = ClassPrior(class_counts).counts
    return counts.sum() / (len(counts) * counts)


def deferred_weights(
    class_counts: ClassCounts, progress: float, start: float = 0.8, beta: float = 0.9999
) -> np.ndarray:
    """Deferred re-weighting (DRW; Cao et al.): ``class_weights`` for ldam, as a function of training progress.

    Weights are 1 until ``progress``, the fraction of training that is done, reaches ``start``, then those of
    `effective_number_weights`. The paper's epoch 160 of 200 is 0.8. Rebuild the loss when progress crosses ``start``.
    """
    return effective_number_weights(class_counts, beta if progress >= start else 0.0)


def ldam_margins(class_counts: ClassCounts, max_margin: float = 0.5) -> np.ndarray:
    """Margins proportional to ``n^(-1/4)``; that of the smallest class is ``max_margin`` (Cao et al.)."""
    margins = ClassPrior(class_counts).counts ** -0.25
    return margins * (max_margin / margins.max())


def las_smoothing(class_counts: ClassCounts, smooth_head: float = 0.3, smooth_tail: float = 0.0) -> np.ndarray:
    """Smoothing from ``smooth_tail`` (smallest class) to ``smooth_head`` (largest), concave in n (Zhong et al.).

    If all classes are of equal size, all get ``smooth_tail``.
    """
    if max(smooth_head, smooth_tail) > 1.0:
        raise ValueError(f"smooth_head, smooth_tail: must be in [0, 1], got {smooth_head} and {smooth_tail}")
    n = ClassPrior(class_counts).counts
    rank = (n - n.min()) / max(n.max() - n.min(), 1)
    return smooth_tail + (smooth_head - smooth_tail) * np.sin(rank * np.pi / 2)


# ---- The table


class _Loss(NamedTuple):
    """A row of the table."""

    short_name: str  # in tables and charts
    title: str
    function: Callable[..., Tensor]
    arguments: Callable[..., dict[str, Any]]  # (prior, tau, **options) -> the function's arguments after smoothing
    balanced: bool = False  # whether tau scales a logit bias; the logits then assume the class prior pi ** (1 - tau)


_LOSSES = {
    "ce": _Loss(
        "CE",
        "cross-entropy (CE)",
        softmax_cross_entropy,
        lambda prior, tau, class_weights=None: {"class_weights": class_weights},
    ),
    "bce": _Loss(
        "BCE",
        "binary cross-entropy (BCE)",
        sigmoid_cross_entropy,
        lambda prior, tau, class_weights=None: {"class_weights": class_weights},
    ),
    "bal_ce": _Loss(
        "Bal-CE",
        "balanced cross-entropy (Bal-CE)",
        softmax_cross_entropy,
        lambda prior, tau, class_weights=None: {"bias": tau * prior.log_prior, "class_weights": class_weights},
        balanced=True,
    ),
    "bal_bce": _Loss(
        "Bal-BCE",
        "balanced binary cross-entropy (Bal-BCE)",
        sigmoid_cross_entropy,
        lambda prior, tau, class_weights=None: {"bias": tau * prior.log_odds, "class_weights": class_weights},
        balanced=True,
    ),
    "cb_ce": _Loss(
        "CB-CE",
        "class-balanced cross-entropy (CB-CE)",
        softmax_cross_entropy,
        lambda prior, tau, beta=0.9999: {"class_weights": effective_number_weights(prior.counts, beta)},
    ),
    "cb_bce": _Loss(
        "CB-BCE",
        "class-balanced binary cross-entropy (CB-BCE)",
        sigmoid_cross_entropy,
        lambda prior, tau, beta=0.9999: {"class_weights": effective_number_weights(prior.counts, beta)},
    ),
    "focal": _Loss("Focal", "focal loss", focal, lambda prior, tau, gamma=2.0: {"gamma": gamma}),
    "ldam": _Loss(
        "LDAM",
        "label-distribution-aware margin loss (LDAM)",
        ldam,
        lambda prior, tau, max_margin=0.5, scale=30.0, class_weights=None: {
            "margins": ldam_margins(prior.counts, max_margin),
            "scale": scale,
            "class_weights": class_weights,
        },
    ),
    "las": _Loss(
        "LAS",
        "label-aware smoothing (LAS, MiSLAS)",
        label_aware_smoothing,
        lambda prior, tau, smooth_head=0.3, smooth_tail=0.0: {
            "class_smoothing": las_smoothing(prior.counts, smooth_head, smooth_tail)
        },
    ),
    "lade": _Loss(
        "LADE",
        "label distribution disentangling loss (LADE)",
        lade,
        lambda prior, tau, alpha=0.1, remine_lambda=0.1: {
            "log_prior": prior.log_prior,
            "tau": tau,
            "alpha": alpha,
            "remine_lambda": remine_lambda,
        },
        balanced=True,
    ),
}
LOSS_NAMES = tuple(_LOSSES)
SHORT_NAMES = {key: loss.short_name for key, loss in _LOSSES.items()}
LOSS_TITLES = {key: loss.title for key, loss in _LOSSES.items()}
BALANCED_LOSSES = tuple(key for key, loss in _LOSSES.items() if loss.balanced)


def loss_words(name: str, tau: float) -> str:
    """A loss with its tau, if it has one, for logs and reports."""
    return f"{name} (tau {tau:g})" if name in BALANCED_LOSSES else name


def check_loss_name(name: str) -> str:
    """Return ``name``; ValueError with the closest known name if it is unknown."""
    if name not in _LOSSES:
        hint = did_you_mean(str(name).replace("-", "_").lower(), LOSS_NAMES)
        raise ValueError(f"loss: {name!r} is unknown;{hint} known: {', '.join(LOSS_NAMES)}")
    return name


def loss_options(name: str) -> dict[str, Any]:
    """The options of a loss, with their defaults."""
    parameters = list(inspect.signature(_LOSSES[check_loss_name(name)].arguments).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def build_loss(
    name: str, class_counts: ClassCounts, tau: float = 1.0, label_smoothing: float = 0.0, **options: Any
) -> Loss:
    """A loss ``(logits (B, C) of any float dtype, targets) -> float32 scalar``.

    Targets are hard labels, int64 (B,), or soft ones, float (B, C) (see the module's docstring). Their values are
    checked in every batch on a CPU, but on an accelerator only in the first one, since the check synchronizes.

    Args:
        name: one of `LOSS_NAMES`.
        class_counts: training images of each class (see `ClassPrior`); integer label ``i`` is the i-th class.
        tau: scale of the logit bias (LiVT Algorithm 1, line 16); losses without a bias ignore it.
        label_smoothing: for hard labels only.
        options: see `loss_options`: ``class_weights`` (length C; ce, bce, bal_ce, bal_bce: Eq. 6, ldam), ``beta``
            (cb_ce, cb_bce), ``gamma`` (focal), ``max_margin`` and ``scale`` (ldam), ``smooth_head`` and ``smooth_tail``
            (las), ``alpha`` and ``remine_lambda`` (lade; defaults of its ImageNet-LT configuration).

    Raises:
        ValueError: unknown name or option, invalid counts, a value out of range, weights whose length is not C.
    """
    function, arguments_of = _LOSSES[check_loss_name(name)].function, _LOSSES[name].arguments
    prior = ClassPrior(class_counts)
    num_classes = len(prior)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: must be in [0, 1), got {label_smoothing}")
    if not isinstance(tau, int | float) or not np.isfinite(tau):
        raise ValueError(f"tau: must be a finite number, got {tau!r}")
    known = loss_options(name)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{option}: not an option of the loss {name!r}; its options: {', '.join(known) or 'none'}")
        is_default = value is None and known[option] is None
        if not is_default and (value is None or not np.isfinite(value).all() or np.min(value) < 0):
            raise ValueError(f"{option}: must be finite and not negative, got {value}")
    weights = options.get("class_weights")
    if weights is not None and np.shape(weights) != (num_classes,):
        raise ValueError(f"class_weights: {np.size(weights)} weights for {num_classes} classes")

    arguments = arguments_of(prior, tau, **options)
    if arguments.get("class_weights") is not None:
        arguments["class_weights"] = np.asarray(arguments["class_weights"], dtype=np.float64)
    # Rounded from float64 to float32 once, and copied to each device once.
    arguments = {k: torch.from_numpy(v).float() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    on_device: dict[torch.device, dict[str, Any]] = {}

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(f"logits: need shape (B, {num_classes}), one column per class, got {tuple(logits.shape)}")
        device = logits.device
        check_values = (device not in on_device or _checks_every_batch(device)) and not torch.compiler.is_compiling()
        targets = checked_targets(targets, num_classes, check_values)
        if device not in on_device:
            on_device[device] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        smoothing = 0.0 if targets.is_floating_point() else label_smoothing
        with torch.autocast(device_type=device.type, enabled=False):
            return function(logits.float(), targets, smoothing, **on_device[device])

    return loss


def _checks_every_batch(device: torch.device) -> bool:
    return device.type == "cpu"  # elsewhere reading values waits for the device


def compute_loss_func(
    name: str,
    class_counts: ClassCounts,
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    model: Any = None,
    **options: Any,
) -> Callable[..., Tensor]:
    """A ``compute_loss_func`` for a stock `transformers.Trainer`; arguments as for `build_loss`.

        Trainer(model, args, compute_loss_func=compute_loss_func("bal_bce", class_counts, model=model), ...)

    With ``model``, the counts are matched with its ``id2label`` by name, and a ValueError names what differs; without
    it, they must be in label order, and only their number is checked, against the logits.

    Trainer counts the label entries of an optimizer step (B for hard labels, B x C for soft ones), over micro-batches
    and, with ``average_tokens_across_devices``, processes. It then does not divide by the accumulation steps, and
    multiplies by the number of processes, which DDP's mean cancels. Each micro-batch is therefore weighted by its
    fraction of that total: batch 8x1, 4x2 accumulated and 2 processes x 4 give the same gradients, except for losses
    that depend on the batch as a whole (class weights on hard labels, but for bce and bal_bce; lade's regularizer).
    ``TrainingArguments.label_smoothing_factor`` has no effect; use ``label_smoothing`` here.
    """
    if model is not None and class_counts is not None:
        class_counts = counts_in_order(class_counts, class_names(model.config))
    loss = build_loss(name, class_counts, tau, label_smoothing, **options)

    def trainer_loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ValueError("labels: the batch has none; the data collator must return them under the key 'labels'")
        value = loss(logits_of(outputs), labels)
        if num_items_in_batch is None:
            return value
        # DataParallel passes one count per GPU and multiplies the result by the number of GPUs; the sum undoes both.
        return value * (labels.numel() / torch.as_tensor(num_items_in_batch, device=value.device).sum())

    return trainer_loss


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model output or dict, of a tuple (its first entry), or the tensor itself."""
    if isinstance(outputs, Mapping):
        if outputs.get("logits") is None:
            raise ValueError(f"logits: the model returned none, only {', '.join(outputs)}")
        return outputs["logits"]
    return outputs[0] if isinstance(outputs, tuple | list) else getattr(outputs, "logits", outputs)
