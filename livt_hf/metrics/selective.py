"""Accuracy over coverage: what remains right if the least confident images are not answered.

Selective classification (Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017): an
image is answered if its confidence is at least a threshold; coverage is the share of images answered, selective
accuracy that of the right ones among them. `livt predict --min_score` sets the threshold.

Legend: N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..prior import ClassPrior, group_definition
from .accuracy import as_labels, check_range, check_same_length

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
COVERAGES = tuple(range(1, 101))  # percent, of the curve


def selective_accuracy(
    labels: Any,
    predictions: Any,
    confidences: Any,
    class_counts: Mapping[str, int] | Sequence[int],
    groups: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Coverage and accuracy at several thresholds, and the curve of both: the entry ``selective`` of results.json.

    All images count equally; among the images of few-shot classes, every class counts equally (so that at full coverage
    their accuracy is ``few``).

    Args:
        labels, predictions: true and predicted class of each image, integers of shape (N,).
        confidences: probability of the predicted class, 0 to 1, shape (N,).
        class_counts, groups: as in `long_tail_accuracy`.

    Returns:
        ``thresholds``: ``[{"min_score", "coverage", "accuracy", "few_coverage", "few_accuracy"}, ...]``, in percent but
        for the first; an accuracy is None where no image is answered, both of ``few`` if there is no few-shot image.
        ``curve``: ``{"coverage": [1, ..., 100], "accuracy": [...], "few": [...] or None}``: for each share of the most
        confident images of all, or of the few-shot classes, their accuracy.
        ``area``: mean accuracy over all coverages, in percent: 100 minus the area under the risk-coverage curve.

    Raises:
        ValueError: no images, different lengths, or a label or prediction out of range.
    """
    labels, predictions = as_labels("labels", labels), as_labels("predictions", predictions)
    confidences = np.asarray(confidences, dtype=np.float64)
    check_same_length(labels=labels, predictions=predictions, confidences=confidences)
    prior = ClassPrior(class_counts)
    check_range("labels", labels, len(prior))
    correct = labels == predictions
    weights = np.ones(len(labels))
    sizes = np.bincount(labels, minlength=len(prior))
    in_few = np.isin(labels, prior.groups(**group_definition(groups))["few"])
    of_few = np.where(in_few, 1 / sizes[labels], 0.0)

    thresholds = []
    for threshold in THRESHOLDS:
        answered = confidences >= threshold
        coverage, accuracy = _share(answered, correct, weights)
        few_coverage, few_accuracy = _share(answered, correct, of_few) if in_few.any() else (None, None)
        row = (threshold, coverage, accuracy, few_coverage, few_accuracy)
        names = ("min_score", "coverage", "accuracy", "few_coverage", "few_accuracy")
        thresholds.append(dict(zip(names, row, strict=True)))
    ends, accuracies = _curve(confidences, correct, weights)
    few = np.interp(COVERAGES, *_curve(confidences, correct, of_few)).tolist() if in_few.any() else None
    return {
        "thresholds": thresholds,
        "curve": {"coverage": list(COVERAGES), "accuracy": np.interp(COVERAGES, ends, accuracies).tolist(), "few": few},
        "area": float(accuracies @ np.diff(ends, prepend=0.0)) / 100,
    }


def _share(answered: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> tuple[float, float | None]:
    """Coverage and accuracy in percent; None if no image is answered."""
    covered = float(weights[answered].sum())
    accuracy = 100 * float(weights[answered & correct].sum()) / covered if covered else None
    return 100 * covered / float(weights.sum()), accuracy


def _curve(confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverages, ascending, and accuracies in percent, at every confidence; equal ones are answered together."""
    used = np.flatnonzero(weights)
    order = used[np.argsort(-confidences[used], kind="stable")]
    last = np.flatnonzero(np.diff(confidences[order], append=-1.0))  # of each confidence
    covered = np.cumsum(weights[order])[last]
    right = np.cumsum(weights[order] * correct[order])[last]
    return 100 * covered / covered[-1], 100 * right / covered
