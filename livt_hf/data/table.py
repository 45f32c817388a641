"""The table that every source is read into (columns "image" and "label"): built from any columns, read by row."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image
from datasets.fingerprint import Hasher

from ..class_names import abbreviate
from ..reporting.blocks import counted

logger = logging.getLogger(__name__)
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# The names that the Hub accepts, the preferred one first.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_of(name: str) -> str | None:
    """The split that a folder, a file or a split of the Hub with this name is, in any case; None if it is none."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


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


def without_unknown(dataset: Dataset, unknown: Mapping[str, int], where: object) -> Dataset:
    """A split without the images whose label is -1 because their class is one of ``unknown`` (see `leave_out`)."""
    if not unknown:
        return dataset
    labels = dataset.data.column("label").to_numpy()
    return leave_out(dataset.select(np.flatnonzero(labels >= 0)), unknown, where)


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
    try:
        path_array = pa.nulls(length, pa.string()) if paths is None else pa.array(paths, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!r}: this file name is not valid UTF-8; rename the file") from None
    return pa.StructArray.from_arrays([bytes_array, path_array], fields=list(IMAGE_TYPE))


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
