"""Stored labels of any kind -> class names and class numbers.

A ClassLabel has its names. Integers of any range are named by their value, in numeric order, and so are floating-point
numbers that are whole (pandas stores integers like that beside missing values). All others are sorted as strings.
Splits are matched with the training split by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel

from ..class_names import abbreviate

Stored = tuple[pa.ChunkedArray, object]  # the labels of a split, and their feature


class SplitLabels(NamedTuple):
    """The labels of a split.

    Attributes:
        numbers: (N,) int64; -1 for images of a class that the training split lacks.
        unknown: ``{class name: images}`` of those classes.
    """

    numbers: np.ndarray
    unknown: dict[str, int]


def number_labels(stored: Mapping[str, Stored], column: str, where: object) -> tuple[list[str], dict[str, SplitLabels]]:
    """Class names, and the labels of each split, the training split first.

    A validation or test split without any label (missing, or -1 as on the Hub) is left out with a warning.

    Raises:
        ValueError: labels that are no single values, or missing, or of which none is among the training classes.
    """
    train = plain_labels(stored["train"][0], column, where)
    feature = stored["train"][1]
    if not len(train) or _has_no_label(train):
        raise ValueError(f"label_column: {column!r} of {where} has no labels in the training split; name another one")
    names = class_names(feature, train)
    numbers = {"train": SplitLabels(label_numbers(train, feature, names, feature, "train", where), {})}
    for split in (split for split in stored if split != "train"):
        labels = plain_labels(stored[split][0], column, where)
        if not is_unlabeled(labels, split, where):
            numbers[split] = evaluation_labels(labels, stored[split][1], names, feature, split, where)
    return names, numbers


def check_single_labels(kind: pa.DataType, column: str, where: object) -> None:
    """ValueError if a column holds lists or structs instead of one label per image."""
    if pa.types.is_nested(kind):
        held = "structs" if pa.types.is_struct(kind) else "lists"
        raise ValueError(
            f"label_column: {column!r} of {where} contains {held}; several labels per image are not supported, one "
            "label per image is: name another column"
        )


def plain_labels(labels: pa.ChunkedArray, column: str, where: object) -> pa.ChunkedArray:
    """Labels without the accidents of storage: whole floating-point numbers are integers, NaN is a missing label."""
    check_single_labels(labels.type, column, where)
    if pa.types.is_dictionary(labels.type):  # pandas' categories
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_floating(labels.type):
        labels = pc.if_else(pc.is_finite(labels), labels, None)  # NaN is a missing label in pandas
        if pc.all(pc.equal(pc.floor(labels), labels)).as_py() is not False:
            return labels.cast(pa.int64())
    return labels


def class_names(feature: object, labels: pa.ChunkedArray) -> list[str]:
    """The names of a ClassLabel; otherwise the values as Arrow prints them, numbers in numeric order."""
    if isinstance(feature, ClassLabel):
        return feature.names
    values = pc.unique(labels).drop_null()
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return values.take(pc.sort_indices(values)).cast(pa.string()).to_pylist()
    return sorted(values.cast(pa.string()).to_pylist())  # as in `label_numbers`: "true"


def is_unlabeled(labels: pa.ChunkedArray, split: str, where: object) -> bool:
    """Whether a validation or test split has no labels at all (missing, or -1 as on the Hub), with a warning."""
    if not len(labels) or not _has_no_label(labels):
        return False
    warnings.warn(f"{where}: the {split} split has no labels and is ignored", stacklevel=2)
    return True


def _has_no_label(labels: pa.ChunkedArray) -> bool:
    if not pa.types.is_signed_integer(labels.type):
        return labels.null_count == len(labels)
    return bool(pc.all(pc.equal(pc.fill_null(labels, -1), -1)).as_py())


def label_numbers(
    labels: pa.ChunkedArray, feature: object, names: list[str], training_feature: object, split: str, where: object
) -> np.ndarray:
    """Plain labels as class numbers, (N,) int64, matched with ``names`` by name.

    Integers are class numbers already if the training split has a ClassLabel, unless the split has another one.

    Raises:
        ValueError: a label that is missing or not among the classes; it names the first such row.
    """
    if isinstance(feature, ClassLabel) and feature.names != getattr(training_feature, "names", None):
        labels = _named(labels, feature)
    known = abbreviate(names, 5)
    if isinstance(training_feature, ClassLabel) and pa.types.is_integer(labels.type):
        known = f"0 to {len(names) - 1}"
        numbers = pc.fill_null(labels, -1).to_numpy()
    else:
        numbers = pc.fill_null(pc.index_in(labels.cast(pa.string()), pa.array(names, pa.string())), -1).to_numpy()
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{where}: label {labels[row].as_py()!r} of {split} row {row} is not one of the {len(names)} classes "
            f"({known}; {len(wrong)} such rows); correct or remove them"
        )
    return numbers.astype(np.int64, copy=False)


def evaluation_labels(
    labels: pa.ChunkedArray, feature: object, names: list[str], training_feature: object, split: str, where: object
) -> SplitLabels:
    """As `label_numbers`, but images of classes that training lacks are marked, unless all are.

    Not of classes that only have numbers: an unknown number may mean that the split counts them from another one.
    """
    if isinstance(feature, ClassLabel) and feature.names != getattr(training_feature, "names", None):
        labels, feature = _named(labels, feature), None
    if not pa.types.is_integer(labels.type):
        text = labels.cast(pa.string())
        known = pc.is_in(text, pa.array(names, pa.string()))
        unknown = pc.and_not(pc.is_valid(text), known)
        if pc.any(known).as_py() and pc.any(unknown).as_py():
            numbers, rest = np.full(len(labels), -1, dtype=np.int64), labels.filter(pc.invert(unknown))
            numbers[~np.asarray(unknown)] = label_numbers(rest, feature, names, training_feature, split, where)
            images = pc.value_counts(text.filter(unknown)).to_pylist()
            return SplitLabels(numbers, dict(sorted((entry["values"], entry["counts"]) for entry in images)))
    return SplitLabels(label_numbers(labels, feature, names, training_feature, split, where), {})


def _named(labels: pa.ChunkedArray, feature: ClassLabel) -> pa.ChunkedArray:
    """The names of the labels; numbers without a name are missing."""
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(feature.names)))
    return pa.chunked_array([pa.array(feature.names).take(pc.if_else(known, labels, None).combine_chunks())])
