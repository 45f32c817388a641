"""The table that every source is read into (columns "image" and "label"): built from any columns, read by row."""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image
from datasets.fingerprint import Hasher

from ..class_names import abbreviate
from ..reporting.blocks import counted

logger = logging.getLogger(__name__)
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}  # accepted


def no_training_split(where: object, expected: str, found: Iterable[str]) -> ValueError:
    """The error for a dataset whose only splits are ``found``."""
    return ValueError(f"{where}: no {expected} beside {', '.join(found)}; a training split is needed")


def image_dataset(images: pa.ChunkedArray | pa.Array, labels, names: Sequence[str], identity: object) -> Dataset:
    """A Dataset of ``images`` (struct of bytes and path) and ``labels`` (N,), without a copy.

    Args:
        identity: small value that determines the content; it is hashed to the fingerprint in place of the images.
    """
    table = pa.table({"image": images, "label": pa.array(np.asarray(labels, dtype=np.int64))})
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=list(names))})
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=Hasher.hash((identity, list(names))))


def leave_out(dataset: Dataset, unknown: Mapping[str, int], where: object) -> Dataset:
    """A validation or test split without its images of classes that the training split lacks, with a warning.

    Args:
        dataset: the remaining images. `left_out` reads the numbers back from it, also after a selection of rows.
        unknown: ``{class name: images}`` of those classes.
    """
    named = [f"{name} ({count:,})" for name, count in unknown.items()]
    logger.warning(
        f"{where}: {counted(sum(unknown.values()), 'image')} left out, because no training image has their class: "
        f"{abbreviate(named)}; rename the class if it is misspelled"
    )
    dataset.info.description = json.dumps({"left_out": dict(unknown)}, ensure_ascii=False)
    return dataset


def left_out(dataset: Dataset) -> dict[str, int]:
    """``{class name: images}`` that `leave_out` left out of a split."""
    try:
        return dict(json.loads(dataset.info.description)["left_out"])
    except (ValueError, KeyError, TypeError):  # no description, or a description of the user's
        return {}


def image_column(*, paths: Sequence[str] | None = None, contents: Sequence[bytes] | None = None) -> pa.Array:
    """Struct array of images given by their paths (which stay on disk) or by their encoded bytes."""
    length = len(paths if paths is not None else contents)  # type: ignore[arg-type]
    bytes_array = pa.nulls(length, pa.binary()) if contents is None else pa.array(contents, pa.binary())
    path_array = pa.nulls(length, pa.string()) if paths is None else pa.array(paths, pa.string())
    return pa.StructArray.from_arrays([bytes_array, path_array], fields=list(IMAGE_TYPE))


def choose_columns(
    features: Features, image_column: str | None, label_column: str | None, where: object
) -> tuple[str, str]:
    """Names of the image and the label column: as given, else the only one of its type, else "image" and "label"."""
    return (
        _choose(image_column, "image_column", features, Image, where),
        _choose(label_column, "label_column", features, ClassLabel, where),
    )


def _choose(column: str | None, option: str, features: Features, kind: type, where: object) -> str:
    if column is not None:
        if column not in features:
            raise ValueError(f"{option}: {where} has no column {column!r}; name one of {', '.join(features)}")
        return column
    candidates = [name for name, feature in features.items() if isinstance(feature, kind)]
    default = option.removesuffix("_column")
    if len(candidates) == 1:
        return candidates[0]
    if default in features:
        return default
    raise ValueError(f"{option}: cannot be inferred for {where}; name one of {', '.join(candidates or features)}")


def class_names(feature: object, labels: pa.ChunkedArray) -> list[str]:
    """The names of a ClassLabel; "0", "1", ... for integers; otherwise the sorted values as Arrow prints them."""
    if isinstance(feature, ClassLabel):
        return feature.names
    if pa.types.is_integer(labels.type):
        return [str(label) for label in range(pc.max(labels).as_py() + 1)]
    values = pc.unique(labels).drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))  # NaN is a missing label in pandas
    return sorted(values.cast(pa.string()).to_pylist())  # as in `checked_labels`: "true"


def with_class_names(labels: pa.ChunkedArray, feature: object, names: list[str]) -> pa.ChunkedArray:
    """Labels of a split, as strings if it numbers its classes differently from the training split (``names``)."""
    if not isinstance(feature, ClassLabel) or feature.names == names:
        return labels
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(feature.names)))
    return pa.chunked_array([pa.array(feature.names).take(pc.if_else(known, labels, None).combine_chunks())])


def is_unlabeled(labels: pa.ChunkedArray, split: str, where: object) -> bool:
    """Whether a validation or test split has no labels at all (missing, or -1 as on the Hub), with a warning."""
    numbers = pc.fill_null(labels, -1) if pa.types.is_integer(labels.type) else None
    empty = labels.null_count == len(labels) if numbers is None else bool(pc.all(pc.equal(numbers, -1)).as_py())
    if split == "train" or not len(labels) or not empty:
        return False
    warnings.warn(f"{where}: the {split} split has no labels and is ignored", stacklevel=2)
    return True


def checked_labels(labels: pa.ChunkedArray, names: list[str], split: str, where: object) -> np.ndarray:
    """Labels as (N,) int64. ValueError names the first row whose label is missing or out of range."""
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
    """Images as struct(bytes, path), from plain bytes or such structs."""
    if pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type):
        chunks = [
            pa.StructArray.from_arrays(
                [chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())], fields=list(IMAGE_TYPE)
            )
            for chunk in images.chunks
        ]
        return pa.chunked_array(chunks, IMAGE_TYPE)
    if not pa.types.is_struct(images.type) or {field.name for field in images.type} != {"bytes", "path"}:
        raise ValueError(f"image_column: the column contains {images.type}, not encoded images; name another one")
    return images.cast(IMAGE_TYPE)


class Rows:
    """Fast access to single images (``{"bytes", "path"}``) and labels. Picklable, for worker processes."""

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
        """`row_positions`, and the two columns of the underlying table."""
        return row_positions(self.dataset), self.dataset.data.column("image"), self.dataset.data.column("label")

    def __getstate__(self) -> dict:
        return {"dataset": self.dataset}  # not the columns: a memory-mapped table travels as its path


def row_positions(dataset: Dataset) -> np.ndarray | None:
    """Row numbers (N,) of a selection in the underlying table; None if the dataset is the whole table."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64, copy=False)
