"""Top-1 accuracy: overall, per class, and of the many-, medium- and few-shot groups.

The accuracy of a group is the unweighted mean of the accuracies of its classes (Liu et al., "Large-Scale Long-Tailed
Recognition in an Open World", CVPR 2019, and the LiVT paper). Differences from LiVT's official code: accuracies are not
rounded before averaging, and a class without test images is left out of its group's mean instead of counting as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..prior import ClassPrior, group_definition


def long_tail_accuracy(
    labels: Any,
    predictions: Any,
    class_counts: Mapping[str, int] | Sequence[int],
    groups: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Top-1 accuracy in percent: overall, per class, and per shot group.

    Args:
        labels: true class of each test image, integers of shape (N,).
        predictions: predicted class of each test image, integers of shape (N,).
        class_counts: training images of each class, ``{name: count}`` or a sequence, in label order.
        groups: definition of the shot groups, keyword arguments of `ClassPrior.groups`.

    Returns:
        ``accuracy``: percent of all images.
        ``many``, ``medium``, ``few``: mean accuracy of the group's classes that have test images, in percent; None if
        there is no such class.
        ``macro_accuracy``, ``worst_class``, ``harmonic_mean``: mean, minimum and harmonic mean of the accuracies of all
        classes that have test images, in percent. The harmonic mean is 0 (its limit) if any class has accuracy 0.
        ``per_class``: ``{name: percent}`` in label order, None for a class without test images.
        ``groups``: ``definition`` (the arguments used), ``sizes`` (number of classes in each group) and ``measured``
        (number of them that have test images).

    Raises:
        ValueError: no images, different lengths, or a label or prediction out of range.
    """
    prior = ClassPrior(class_counts)
    labels, predictions = as_labels("labels", labels), as_labels("predictions", predictions)
    check_same_length(labels=labels, predictions=predictions)
    for name, values in (("labels", labels), ("predictions", predictions)):
        check_range(name, values, len(prior))

    definition = group_definition(groups)
    members = prior.groups(**definition)
    correct = labels == predictions
    images = np.bincount(labels, minlength=len(prior))  # (C,)
    hits = np.bincount(labels[correct], minlength=len(prior))  # (C,)
    tested = images > 0
    percent = 100.0 * hits / np.maximum(images, 1)  # (C,)

    result: dict[str, Any] = {"accuracy": 100.0 * float(correct.mean())}
    for group, classes in members.items():
        classes = classes[tested[classes]]
        result[group] = float(percent[classes].mean()) if len(classes) else None
    of_tested = percent[tested]
    result["macro_accuracy"] = float(of_tested.mean())
    result["worst_class"] = float(of_tested.min())
    result["harmonic_mean"] = float(len(of_tested) / (1 / of_tested).sum()) if of_tested.all() else 0.0
    result["per_class"] = {
        name: float(value) if known else None for name, value, known in zip(prior.names, percent, tested, strict=True)
    }
    result["groups"] = {
        "definition": definition,
        "sizes": {group: len(classes) for group, classes in members.items()},
        "measured": {group: int(tested[classes].sum()) for group, classes in members.items()},
    }
    return result


def as_labels(name: str, values: Any) -> np.ndarray:
    """``values`` as an int64 array of shape (N,); ValueError for another shape or dtype."""
    array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name}: empty; at least one test image is needed")
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}; one class index per image is needed (logits.argmax(-1))")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: {array.dtype} values; class indices must be integers")
    return array.astype(np.int64)


def check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    """ValueError if a label is not in 0..num_classes - 1, naming the first one."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        first = outside[0]
        raise ValueError(
            f"{name}: value {labels[first]} at position {first} is out of range; {num_classes} classes have labels "
            f"0 to {num_classes - 1}"
        )


def check_same_length(**arrays: np.ndarray) -> None:
    """ValueError if the arrays differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError("lengths differ: " + ", ".join(f"{length} {name}" for name, length in lengths.items()))
