"""Expected and maximum calibration error (ECE, MCE), and the bins of a reliability diagram.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): images are grouped into equal-width bins by the
confidence of their prediction; the gap of a bin is |accuracy - mean confidence|; ECE is the mean gap weighted by the
number of images, MCE the largest gap. 15 bins, as in the LiVT paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .accuracy import as_labels, check_same_length


def calibration_error(labels: Any, predictions: Any, confidences: Any, num_bins: int = 15) -> dict[str, float]:
    """Calibration errors ``{"ece": percent, "mce": percent}``; arguments as in `reliability_bins`."""
    return error_of_bins(reliability_bins(labels, predictions, confidences, num_bins))


def error_of_bins(bins: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``{"ece": percent, "mce": percent}`` from the bins of `reliability_bins`."""
    filled = [bin_ for bin_ in bins if bin_["count"]]
    images = sum(bin_["count"] for bin_ in filled)
    gaps = [abs(bin_["accuracy"] - bin_["confidence"]) for bin_ in filled]
    ece = sum(gap * bin_["count"] for gap, bin_ in zip(gaps, filled, strict=True)) / images
    return {"ece": float(ece), "mce": float(max(gaps))}


def reliability_bins(labels: Any, predictions: Any, confidences: Any, num_bins: int = 15) -> list[dict[str, Any]]:
    """Accuracy and mean confidence per bin of confidence: the numbers behind a reliability diagram.

    Args:
        labels: true class of each image, integers of shape (N,).
        predictions: predicted class of each image, integers of shape (N,).
        confidences: probability of the predicted class, 0 to 1, shape (N,).
        num_bins: number of equal-width bins. Bin b covers the confidences in (b / num_bins, (b + 1) / num_bins]; the
            first one includes 0.

    Returns:
        One dict per bin: ``low`` and ``high`` (its edges, percent), ``count`` (images), ``accuracy`` and ``confidence``
        (percent; None for an empty bin).

    Raises:
        ValueError: no images, different lengths, a confidence outside 0..1, fewer than one bin.
    """
    labels, predictions = as_labels("labels", labels), as_labels("predictions", predictions)
    confidences = np.asarray(confidences, dtype=np.float64)
    check_same_length(labels=labels, predictions=predictions, confidences=confidences)
    outside = np.flatnonzero(~((confidences >= 0) & (confidences <= 1)))  # NaN counts as outside
    if len(outside):
        raise ValueError(
            f"confidences: value {confidences[outside[0]]} at position {outside[0]} is not in 0..1; apply softmax to "
            "the logits first"
        )
    if num_bins < 1:
        raise ValueError(f"num_bins: {num_bins}; at least 1 bin is needed")

    edges = np.linspace(0.0, 1.0, num_bins + 1)
    which = np.clip(np.digitize(confidences, edges, right=True) - 1, 0, num_bins - 1)
    count = np.bincount(which, minlength=num_bins)
    accuracy = 100.0 * np.bincount(which, labels == predictions, num_bins) / np.maximum(count, 1)
    confidence = 100.0 * np.bincount(which, confidences, num_bins) / np.maximum(count, 1)
    return [
        {
            "low": 100.0 * float(edges[b]),
            "high": 100.0 * float(edges[b + 1]),
            "count": int(count[b]),
            "accuracy": float(accuracy[b]) if count[b] else None,
            "confidence": float(confidence[b]) if count[b] else None,
        }
        for b in range(num_bins)
    ]
