"""The one table every source ends in (columns "image" and "label"), built from any columns and read by row."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image
from datasets.fingerprint import Hasher

IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def image_dataset(images: pa.ChunkedArray | pa.Array, labels, names: Sequence[str], identity: object) -> Dataset:
    """A Dataset of ``images`` (struct of bytes and path) and ``labels`` (N,), held as they are.

    Args:
        identity: small thing that the content depends on; the fingerprint comes from it, not from all the images.
    """
    table = pa.table({"image": images, "label": pa.array(np.asarray(labels, dtype=np.int64))})
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=list(names))})
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=Hasher.hash((identity, list(names))))


def image_column(*, paths: Sequence[str] | None = None, contents: Sequence[bytes] | None = None) -> pa.Array:
    """Struct array of images given by their paths (which stay on disk) or by their encoded bytes."""
    length = len(paths if paths is not None else contents)  # type: ignore[arg-type]
    bytes_array = pa.nulls(length, pa.binary()) if contents is None else pa.array(contents, pa.binary())
    path_array = pa.nulls(length, pa.string()) if paths is None else pa.array(paths, pa.string())
    return pa.StructArray.from_arrays([bytes_array, path_array], fields=list(IMAGE_TYPE))


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


def is_unlabeled(labels: pa.ChunkedArray, split: str, where: object) -> bool:
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


class Rows:
    """Images as ``{"bytes", "path"}`` and labels. Can be sent to worker processes."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> dict:
        positions, images, _ = self._columns
        return images[index if positions is None else int(positions[index])].as_py()

    def label(self, index: int) -> int:
        positions, _, labels = self._columns
        return labels[index if positions is None else int(positions[index])].as_py()

    @functools.cached_property
    def _columns(self) -> tuple[np.ndarray | None, pa.ChunkedArray, pa.ChunkedArray]:
        """Positions of the rows if a selection was made (N,), and the columns of the table underneath."""
        return row_positions(self.dataset), self.dataset.data.column("image"), self.dataset.data.column("label")

    def __getstate__(self) -> dict:
        return {"dataset": self.dataset}  # not the columns: a memory-mapped table travels as its path


def row_positions(dataset: Dataset) -> np.ndarray | None:
    """Where the rows of a selection lie in the table underneath (N,); None if the dataset is the whole table."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64, copy=False)
