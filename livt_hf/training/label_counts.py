"""Training images per class of whatever a `transformers.Trainer` trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Subset

from ..class_names import placeholder_names

LABEL_COLUMNS = ("label", "labels", "label_ids")  # the names that transformers' collators look for


def count_labels(
    dataset: Any, model_names: Sequence[str] | None = None, label_columns: Sequence[str] = LABEL_COLUMNS
) -> dict[str, int] | None:
    """Training images per class; None if the dataset does not have its labels in a column or an attribute.

    Args:
        dataset: a `datasets.Dataset` with a label column, in whatever format or transform, or a torch dataset with
            ``targets`` and perhaps ``classes`` (torchvision), or ``labels`` and ``class_names``; also a Subset of one.
        model_names: class names of the model in label order, if it has a config. Integer labels are its labels;
            strings are its names.

    Raises:
        ValueError: integers that are not labels of the model, or that number the same names in another order.
    """
    found = _labels_and_names(dataset, label_columns)
    if found is None:
        return None
    labels, names = found
    if labels.dtype.kind == "U":  # a transform maps them to numbers
        if model_names is not None and list(model_names) == placeholder_names(len(model_names)):
            raise ValueError(
                "class_counts: the labels of the training set are names, but the model's id2label has none; load the "
                "model with id2label= and label2id="
            )
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    if labels.dtype.kind not in "iu":
        raise ValueError(f"class_counts: labels of the training set are missing or are no classes ({labels.dtype})")
    model_names = [] if model_names is None else list(model_names)
    names = names or model_names or [str(label) for label in range(labels.max() + 1)]
    if names != model_names and set(names) == set(model_names):
        label = next(label for label, name in enumerate(names) if name != model_names[label])
        raise ValueError(
            f"class_counts: label {label} is {names[label]!r} in the training set, and {model_names[label]!r} in the "
            "model's id2label; give both the same order, or, if a transform renumbers the labels, pass "
            "class_counts={name: count}"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"class_counts: the labels of the training set are {labels.min()} to {labels.max()}, but there are "
            f"{len(names)} classes, with labels 0 to {len(names) - 1}; renumber them, or load the model with "
            "num_labels=NUMBER OF CLASSES"
        )
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def _labels_and_names(dataset: Any, columns: Sequence[str]) -> tuple[np.ndarray, list[str] | None] | None:
    """Labels (N,) and the names of their classes, if the dataset has them."""
    if isinstance(dataset, Subset):
        whole = _labels_and_names(dataset.dataset, columns)
        return None if whole is None else (whole[0][np.asarray(dataset.indices)], whole[1])
    if isinstance(dataset, datasets.Dataset):
        named = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
        candidates = [*(name for name in columns if name in dataset.column_names), *(named if len(named) == 1 else [])]
        if not candidates or not isinstance(dataset.features[candidates[0]], datasets.ClassLabel | datasets.Value):
            return None  # soft labels have no counts
        labels = dataset.select_columns(candidates[0]).with_format(None)[:][candidates[0]]
        return np.asarray(labels), getattr(dataset.features[candidates[0]], "names", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None or np.ndim(labels) != 1 or not len(labels):
        return None
    names = getattr(dataset, "classes", getattr(dataset, "class_names", None))
    return np.asarray(labels), None if names is None else [str(name) for name in names]
