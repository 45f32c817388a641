"""Confusion between shot groups and between classes, confident mistakes, and predicted against true class frequencies.

Memory is linear in images and classes: the full confusion matrix of 8,142 classes would have 66 million cells, of which
24,426 test images fill a few thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..prior import GROUP_NAMES, ClassPrior, group_definition
from .accuracy import as_labels, check_range, check_same_length

ClassCounts = Mapping[str, int] | Sequence[int]


def prediction_calibration(labels: Any, predictions: Any, class_counts: ClassCounts) -> float | None:
    """Predictive Distribution Calibration (PDC): divergence of the predicted from the true class frequencies.

    KL(test labels || predictions) / KL(test labels || training prior) over class frequencies, with 1e-6 inside the
    logarithms, as in LiVT's official `engine_finetune.py`; Xu et al., "Rethink Long-tailed Recognition with Vision
    Transformers" (ICASSP 2023). 0: classes are predicted as often as they occur; 1: as often as in training.

    Args:
        labels, predictions: integers of shape (N,).
        class_counts: training images of each class, ``{name: count}`` or a sequence, in label order.

    Returns:
        The quotient; None, since it says nothing, if the test labels are distributed like the training images: if their
        divergence from the prior is at most (C - 1) / 2N, which is its mean for N labels drawn from the prior itself
        (2N times it then follows a chi-squared distribution with C - 1 degrees of freedom; Wilks, 1938).
    """
    prior, labels, predictions = _checked(labels, predictions, class_counts)
    test = np.bincount(labels, minlength=len(prior)) / len(labels)  # (C,)
    predicted = np.bincount(predictions, minlength=len(prior)) / len(predictions)  # (C,)
    to_prior = _divergence(test, prior.pi)
    by_chance = (len(prior) - 1) / (2 * len(labels))
    return _divergence(test, predicted) / to_prior if to_prior > by_chance else None


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * (np.log(p + 1e-6) - np.log(q + 1e-6))))


def group_confusion(
    labels: Any, predictions: Any, class_counts: ClassCounts, groups: Mapping[str, Any] | None = None
) -> dict[str, dict[str, int]]:
    """Number of test images by shot group of the true class (outer key) and of the predicted class (inner key).

    Arguments as in `long_tail_accuracy`. ``["many"]["many"]`` includes images of a many-shot class predicted as another
    many-shot class.
    """
    prior, labels, predictions = _checked(labels, predictions, class_counts)
    group_of = np.zeros(len(prior), dtype=np.int64)  # (C,)
    for group, members in enumerate(prior.groups(**group_definition(groups)).values()):
        group_of[members] = group
    size = len(GROUP_NAMES)
    table = np.bincount(group_of[labels] * size + group_of[predictions], minlength=size * size).reshape(size, size)
    return {
        name: dict(zip(GROUP_NAMES, map(int, row), strict=True)) for name, row in zip(GROUP_NAMES, table, strict=True)
    }


def class_confusion(labels: Any, predictions: Any, class_counts: ClassCounts) -> dict[str, dict[str, int]]:
    """Number of test images by true class (outer key) and predicted class (inner key), without zeros.

    Arguments as in `long_tail_accuracy`.
    """
    prior, labels, predictions = _checked(labels, predictions, class_counts)
    table: dict[str, dict[str, int]] = {name: {} for name in prior.names}
    pairs, images = np.unique(labels * len(prior) + predictions, return_counts=True)
    for pair, count in zip(pairs.tolist(), images.tolist(), strict=True):
        true, predicted = divmod(pair, len(prior))
        table[prior.names[true]][prior.names[predicted]] = count
    return table


def confused_pairs(labels: Any, predictions: Any, class_counts: ClassCounts, limit: int = 20) -> list[dict[str, Any]]:
    """The most frequent mistakes: ``{"true", "predicted", "images", "share"}``, most images first.

    ``share`` is in percent of the true class's test images. Ties are ordered by larger share, then by label.

    Args:
        labels, predictions, class_counts: as in `long_tail_accuracy`.
        limit: largest number of pairs.
    """
    prior, labels, predictions = _checked(labels, predictions, class_counts)
    tested = np.bincount(labels, minlength=len(prior))  # (C,)
    wrong = labels != predictions
    pairs, images = np.unique(labels[wrong] * len(prior) + predictions[wrong], return_counts=True)
    true, predicted = np.divmod(pairs, len(prior))
    share = 100.0 * images / tested[true]
    order = np.lexsort((pairs, -share, -images))[:limit]
    return [
        {
            "true": prior.names[true[pair]],
            "predicted": prior.names[predicted[pair]],
            "images": int(images[pair]),
            "share": float(share[pair]),
        }
        for pair in order
    ]


def hardest_images(
    labels: Any,
    predictions: Any,
    confidences: Any,
    true_probabilities: Any,
    class_counts: ClassCounts,
    groups: Mapping[str, Any] | None = None,
    limit: int = 24,
) -> list[dict[str, Any]]:
    """The most confident mistakes on few-shot classes (medium- or many-shot if no few-shot class has test images).

    They are the most informative ones: a rare class that looks like a common one, or a wrong label.

    Args:
        labels, predictions: integers of shape (N,).
        confidences: probability of each prediction, 0 to 1, shape (N,).
        true_probabilities: probability of each true class, 0 to 1, shape (N,).
        class_counts, groups: as in `long_tail_accuracy`.
        limit: largest number of images.

    Returns:
        ``{"index", "group", "true", "predicted", "confidence", "true_probability"}`` (index in the split;
        probabilities in percent), most confident first.
    """
    prior, labels, predictions = _checked(labels, predictions, class_counts)
    confidences, true_probabilities = np.asarray(confidences), np.asarray(true_probabilities)
    check_same_length(labels=labels, confidences=confidences, true_probabilities=true_probabilities)
    members = prior.groups(**group_definition(groups))
    for group in reversed(GROUP_NAMES):
        of_group = np.isin(labels, members[group])  # (N,)
        if of_group.any():
            break
    wrong = np.flatnonzero(of_group & (labels != predictions))
    order = wrong[np.argsort(-confidences[wrong], kind="stable")][:limit]
    return [
        {
            "index": int(index),
            "group": group,
            "true": prior.names[labels[index]],
            "predicted": prior.names[predictions[index]],
            "confidence": 100.0 * float(confidences[index]),
            "true_probability": 100.0 * float(true_probabilities[index]),
        }
        for index in order
    ]


def _checked(labels: Any, predictions: Any, class_counts: ClassCounts) -> tuple[ClassPrior, np.ndarray, np.ndarray]:
    prior = ClassPrior(class_counts)
    labels, predictions = as_labels("labels", labels), as_labels("predictions", predictions)
    check_same_length(labels=labels, predictions=predictions)
    for name, values in (("labels", labels), ("predictions", predictions)):
        check_range(name, values, len(prior))
    return prior, labels, predictions
