"""From any table of images to ours: which columns are meant, what the classes are called, labels checked."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image

from .table import IMAGE_TYPE


def choose_columns(
    features: Features, image_column: str | None, label_column: str | None, where: object
) -> tuple[str, str]:
    """The columns named by the user, or the only ones of the right kind, or the ones called "image" and "label"."""
    return (
        _choose(image_column, "image_column", features, Image, where),
        _choose(label_column, "label_column", features, ClassLabel, where),
    )


def _choose(column: str | None, option: str, features: Features, kind: type, where: object) -> str:
    if column is not None:
        if column not in features:
            raise ValueError(f"--{option} {column}: {where} has no such column; its columns are {', '.join(features)}")
        return column
    candidates = [name for name, feature in features.items() if isinstance(feature, kind)]
    ours = option.removesuffix("_column")
    if len(candidates) == 1:
        return candidates[0]
    if ours in features:
        return ours
    which = f"which of {', '.join(candidates)}" if candidates else f"which of its columns {', '.join(features)}"
    raise ValueError(f"{where}: {which} is the {ours}? Name it with --{option}")


def class_names(feature: object, labels: pa.ChunkedArray) -> list[str]:
    """The ClassLabel's names; "0", "1", ... for plain integers; the sorted values, as Arrow writes them, for others."""
    if isinstance(feature, ClassLabel):
        return feature.names
    if pa.types.is_integer(labels.type):
        return [str(label) for label in range(pc.max(labels).as_py() + 1)]
    values = pc.unique(labels).drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))  # pandas' missing label is no class
    return sorted(values.cast(pa.string()).to_pylist())  # as in `checked_labels`: "true"


def with_class_names(labels: pa.ChunkedArray, feature: object, names: list[str]) -> pa.ChunkedArray:
    """Labels of a split that numbers its classes otherwise than ``names``, those of the training split, by name."""
    if not isinstance(feature, ClassLabel) or feature.names == names:
        return labels
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(feature.names)))
    return pa.chunked_array([pa.array(feature.names).take(pc.if_else(known, labels, None).combine_chunks())])


def is_unlabelled(labels: pa.ChunkedArray, split: str, where: object) -> bool:
    """Whether a split to evaluate on has no labels at all (missing, or -1 as on the Hub); says so."""
    numbers = pc.fill_null(labels, -1) if pa.types.is_integer(labels.type) else None
    empty = labels.null_count == len(labels) if numbers is None else bool(pc.all(pc.equal(numbers, -1)).as_py())
    if split == "train" or not len(labels) or not empty:
        return False
    warnings.warn(f"{where}: the {split} split has no labels and is left out", stacklevel=2)
    return True


def checked_labels(labels: pa.ChunkedArray, names: list[str], split: str, where: object) -> np.ndarray:
    """(N,) int64; the first row whose label is missing or out of range is named."""
    if pa.types.is_integer(labels.type):
        numbers = pc.fill_null(labels, -1).to_numpy()
    else:
        numbers = pc.fill_null(pc.index_in(labels.cast(pa.string()), pa.array(names)), -1).to_numpy()
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{where}: label {labels[row].as_py()!r} of {split} row {row} is not one of the {len(names)} classes "
            f"(0 to {len(names) - 1}; {len(wrong)} such rows); correct or remove them"
        )
    return numbers.astype(np.int64, copy=False)


def image_structs(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Images as struct(bytes, path), whatever of the two is stored."""
    if pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type):
        chunks = [
            pa.StructArray.from_arrays(
                [chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())], fields=list(IMAGE_TYPE)
            )
            for chunk in images.chunks
        ]
        return pa.chunked_array(chunks, IMAGE_TYPE)
    if not pa.types.is_struct(images.type) or {field.name for field in images.type} != {"bytes", "path"}:
        raise ValueError(f"--image_column: the column holds {images.type}, not images (encoded bytes)")
    return images.cast(IMAGE_TYPE)
