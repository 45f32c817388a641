"""A linear probe: a linear classifier on frozen features, with any of the losses, fitted to its minimum.

The features are standardized, the loss plus an L2 penalty is minimized by full-batch L-BFGS with a strong-Wolfe line
search, as DINOv2 and CLIP do for their logistic regressions, and the standardization is folded into weight and bias.
For most losses the problem is convex, so that the result does not depend on a learning rate, a schedule or a seed.

Legend: N images, D width, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import BALANCED_LOSSES, Loss, build_loss
from ..prior import ClassPrior
from .adjust import image_weights, negative_log_likelihood
from .predictions import choose_device

logger = logging.getLogger(__name__)
L2_STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each fit starts from the one before
HELD_OUT = 0.2  # fraction of each class's training images that chooses among them where there is no validation split
ITERATIONS = 200
PATH_ITERATIONS = 30  # where strengths are compared; each fit starts from the one before
HISTORY = 10  # pairs of vectors that L-BFGS keeps
SMALLEST_GRADIENT = 1e-5  # largest component at which the minimum counts as reached
ROUGHLY = 1e-4  # the same for the comparison
LOGITS_AT_ONCE = 2**27  # 512 MiB in float32; more are computed in parts
SCALES = np.geomspace(0.03, 30, 13)  # of the logits, among which `held_out_loss` takes the best


def fit_probe(
    features: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    class_counts: Mapping[str, int],
    loss: str = "bal_ce",
    tau: float = 1.0,
    *,
    label_smoothing: float = 0.0,
    l2: float | None = None,
    validation: tuple[np.ndarray | Tensor, np.ndarray | Tensor] | None = None,
    seed: int = 0,
    device: str | None = None,
    **loss_options: Any,
) -> nn.Linear:
    """Fit a linear classifier D -> C on features as they are (the standardization is folded), on the CPU.

    Args:
        features: float (N, D), of the training images.
        labels: int64 (N,).
        class_counts: training images of each class, by name, in label order: the prior of the loss.
        loss: name of one of `livt_hf.losses`.
        l2: strength of the penalty ``l2 / 2 * ||W||^2`` on the weight of standardized features; None chooses it with
            `choose_l2` and the next two arguments.
        validation: features and labels of other images.
        seed: of the division of the training images where there are none.
        device: e.g. "cuda:1"; by default the GPU if there is one.
        loss_options: of `build_loss`, for instance ``class_weights``.

    Raises:
        ValueError: features that are not finite, or do not fit the labels; options of the loss that it refuses.
    """
    settings = {"loss": loss, "tau": tau, "label_smoothing": label_smoothing, **loss_options}
    if l2 is None:
        losses = choose_l2(features, labels, class_counts, validation=validation, seed=seed, device=device, **settings)
        l2 = min(losses, key=losses.__getitem__)
    inputs = _Standardized(features, labels, class_counts, settings, device)
    return inputs.folded(inputs.minimum(inputs.start(), l2))


def choose_l2(
    features: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    class_counts: Mapping[str, int],
    loss: str = "bal_ce",
    tau: float = 1.0,
    *,
    validation: tuple[np.ndarray | Tensor, np.ndarray | Tensor] | None = None,
    seed: int = 0,
    device: str | None = None,
    **loss_options: Any,
) -> dict[float, float]:
    """``{L2 strength: held-out loss}``, of `L2_STRENGTHS` from the strongest on; the smallest loss is the best.

    The loss of the validation images, else of `HELD_OUT` training images, is that of `held_out_loss`. The path ends at
    the first strength, from the third on, that is worse than the best: weaker ones take longest. Arguments as for
    `fit_probe`.
    """
    if validation is None:
        rows, held_out = stratified_rows(_numbers(labels), HELD_OUT, seed)
        if not len(held_out):  # every class has one image
            return {L2_STRENGTHS[0]: float("nan")}
        validation = features[held_out], labels[held_out]
        features, labels = features[rows], labels[rows]
    prior = ClassPrior(class_counts)
    assumed = (1.0 - tau if loss in BALANCED_LOSSES else 1.0) * prior.log_prior
    inputs = _Standardized(features, labels, class_counts, {"loss": loss, "tau": tau, **loss_options}, device)
    others, other_labels = torch.as_tensor(validation[0]), torch.from_numpy(_numbers(validation[1]))
    point, losses = inputs.start(), dict[float, float]()
    for l2 in L2_STRENGTHS:
        point = inputs.minimum(point, l2, PATH_ITERATIONS, ROUGHLY)
        with torch.no_grad():
            logits = inputs.folded(point)(others.float())
        losses[l2] = held_out_loss(logits, other_labels.long(), assumed)
        if len(losses) > 2 and losses[l2] > min(losses.values()):
            break
    return losses


def held_out_loss(logits: Tensor, labels: Tensor, assumed_log_prior: np.ndarray) -> float:
    """Negative log-likelihood under a uniform prior, every class counting the same, at the best scale of the logits.

    The prior that the logits assume is taken out of them; the scale makes losses comparable whose logits are no
    log-probabilities (the binary ones, ldam), and is the best one of `SCALES`.

    Args:
        logits: float (N, C).
        labels: int64 (N,).
        assumed_log_prior: float (C,).
    """
    weights = image_weights(labels, np.full(logits.shape[1], 1.0 / logits.shape[1]))
    logits = logits.cpu()
    return min(
        negative_log_likelihood(logits, labels, float(scale), -assumed_log_prior, weights)[0] for scale in SCALES
    )


def stratified_rows(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted rows that stay and rows held out: of each class ``fraction``, at least one, but never the only image."""
    generator, held_out = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out.append(rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


class _Standardized:
    """The optimization problem: standardized features, labels and loss, on a device."""

    def __init__(
        self,
        features: np.ndarray | Tensor,
        labels: np.ndarray | Tensor,
        class_counts: Mapping[str, int],
        settings: Mapping[str, Any],
        device: str | None,
    ):
        found = torch.as_tensor(features)
        if found.ndim != 2 or len(found) != len(labels) or not len(found):
            raise ValueError(f"features: need shape (N, D) for {len(labels)} labels, got {tuple(found.shape)}")
        device = choose_device(device)
        found = found.to(device, torch.float32)
        self.mean = found.mean(dim=0, dtype=torch.float64)  # (D,)
        spread = torch.stack([part.double().sub(self.mean).square().sum(dim=0) for part in found.split(8192)])
        if not torch.isfinite(spread).all():
            raise ValueError("features: they are not finite; leave out the images without features")
        std = (spread.sum(dim=0) / len(found)).sqrt()
        # A feature that never changes has no scale; rounding makes it change a little.
        self.std = torch.where(std > 1e-6 * found.abs().amax(dim=0), std, 1.0)
        # (N, D + 1): with the 1 of the bias, one matrix product is all, which is faster than adding the bias
        self.features = F.pad((found - self.mean.float()) / self.std.float(), (0, 1), value=1.0)
        self.labels = torch.from_numpy(_numbers(labels)).to(device, torch.int64)
        self.classes = len(ClassPrior(class_counts))
        self.loss: Loss = build_loss(settings["loss"], class_counts, **_without(settings, "loss"))
        whole = settings["loss"] in ("lade", "cb_ce") or settings.get("class_weights") is not None
        self.rows = len(found) if whole else max(LOGITS_AT_ONCE // self.classes, 1)  # of logits computed at once

    def start(self) -> Tensor:
        """Zero weight and bias: (C, D + 1), the bias last."""
        return torch.zeros(self.classes, self.features.shape[1], device=self.features.device)

    def minimum(
        self, start: Tensor, l2: float, iterations: int = ITERATIONS, gradient: float = SMALLEST_GRADIENT
    ) -> Tensor:
        """Weight and bias (C, D + 1) at the minimum of loss and penalty, searched from ``start``."""
        point = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=iterations,
            history_size=HISTORY,
            tolerance_grad=gradient,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            total = (l2 / 2) * point[:, :-1].square().sum()
            total.backward()
            for features, labels in zip(self.features.split(self.rows), self.labels.split(self.rows), strict=True):
                part = self.loss(F.linear(features, point), labels) * (len(labels) / len(self.labels))
                part.backward()
                total = total.detach() + part.detach()
            return total

        optimizer.step(objective)
        return point.detach()

    @torch.no_grad()
    def folded(self, point: Tensor) -> nn.Linear:
        """The linear layer on features as they are."""
        weight = point[:, :-1].double() / self.std
        layer = nn.Linear(weight.shape[1], self.classes)
        layer.weight.copy_(weight)
        layer.bias.copy_(point[:, -1].double() - weight @ self.mean)
        return layer


def _numbers(labels: np.ndarray | Tensor) -> np.ndarray:
    """A copy, since the labels of a dataset are read-only, which torch warns of."""
    return labels.cpu().numpy() if isinstance(labels, Tensor) else np.array(labels)


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}
