"""Building the one table every source ends in: columns "image" (bytes or path, never decoded) and "label"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
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
