"""Temperature scaling (Guo et al., ICML 2017): one number that the logits are divided by, fitted on labelled images.

Legend: N images, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

TEMPERATURES = (0.01, 100.0)  # where the fit looks


def fit_temperature(logits: Tensor, labels: Tensor, shift: np.ndarray, weights: Tensor | None = None) -> float:
    """The T that minimises the negative log-likelihood of ``softmax(logits / T + shift)``.

    It is convex in 1 / T: bisection of its slope, to a relative precision of 1e-6.

    Args:
        logits: float (N, C).
        labels: int64 (N,).
        shift: (C,).
        weights: (N,), of the images; None counts each the same.

    Raises:
        ValueError: there is no minimum within `TEMPERATURES`, such as where all predictions are right.
    """
    low, high = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    slopes = [negative_log_likelihood(logits, labels, beta, shift, weights)[1] for beta in (low, high)]
    if not slopes[0] < 0 < slopes[1]:
        bound = TEMPERATURES[0 if slopes[1] <= 0 else 1]
        raise ValueError(
            f"temperature: the likelihood of {len(labels)} images still grows at {bound:g}: all predictions are right, "
            "or no better than chance; give a number, or more images"
        )
    while high / low > 1.0 + 1e-6:
        middle = math.sqrt(low * high)
        if negative_log_likelihood(logits, labels, middle, shift, weights)[1] < 0:
            low = middle
        else:
            high = middle
    return 1.0 / math.sqrt(low * high)


def negative_log_likelihood(
    logits: Tensor, labels: Tensor, beta: float, shift: np.ndarray, weights: Tensor | None = None
) -> tuple[float, float]:
    """Mean of ``-log softmax(beta * logits + shift)[label]``, and its slope in beta; a chunk of images at a time."""
    total, slope = 0.0, 0.0
    weights = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    for z, y, w in zip(logits.split(1024), labels.split(1024), weights.split(1024), strict=True):
        z = z.double()
        log_p = (beta * z + torch.from_numpy(shift)).log_softmax(dim=1)  # (chunk, C)
        total -= float((w * log_p.gather(1, y[:, None])[:, 0]).sum())
        slope += float((w * ((log_p.exp() * z).sum(dim=1) - z.gather(1, y[:, None])[:, 0])).sum())
    return total / float(weights.sum()), slope / float(weights.sum())


def image_weights(labels: Tensor, shares: np.ndarray) -> Tensor:
    """Weights (N,) with which the classes have the given shares (C,), those without an image left out."""
    counts = torch.bincount(labels, minlength=len(shares))
    return torch.from_numpy(shares)[labels] / counts[labels]
