"""`livt embed`: the features of images as a Parquet table, for other tools (pandas, DuckDB, vector databases).

Columns: ``file`` (path of the image, null if it has none), ``split`` and ``label`` (class name), both null for images
that are not of a dataset, and ``vector``, a fixed-size list of float32, null for an unreadable image.

Legend: N images, D width.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..data.long_tail import dataset_labels
from ..data.table import Rows, image_column, image_dataset
from ..files import publish_file
from .features import load_feature_model, split_features

ROWS_AT_ONCE = 4096  # a row group


def embed(
    model: str | Path,
    splits: Mapping[str, Dataset] | Dataset,
    output: str | Path,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    bad_images_log: str | Path | None = None,
) -> tuple[int, int]:
    """Write the features of all images to a Parquet file, which is complete or absent; return N and the unreadable.

    Args:
        model: folder or Hub id of a classifier, vision tower or masked autoencoder.
        splits: of a dataset, by name, or images without splits and labels (`image_files`).
        bad_images_log: file to which unreadable images are appended.

    Raises:
        ValueError: no such model, or a file that cannot be written.
    """
    output = Path(output)
    check_output(output)
    encoder, image_processor = load_feature_model(model)
    labeled = isinstance(splits, Mapping)
    parts = splits if isinstance(splits, Mapping) else {"": splits}
    temporary, number, unreadable = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp"), 0, 0
    writer: pq.ParquetWriter | None = None
    try:
        for name, split in parts.items():
            features = split_features(
                encoder,
                split,
                image_processor,
                batch_size=batch_size,
                num_workers=num_workers,
                device=device,
                max_bad_images=len(split),
                bad_images_log=bad_images_log,
            )
            for start in range(0, len(split), ROWS_AT_ONCE):
                rows = range(start, min(start + ROWS_AT_ONCE, len(split)))
                table = _table(split, rows, features[start : rows.stop], name if labeled else None)
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
            number, unreadable = number + len(split), unreadable + int(np.isnan(features[:, 0]).sum())
        if writer is not None:
            writer.close()
            publish_file(temporary, output)
    except OSError as error:
        raise ValueError(f"output: {str(output)!r} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return number, unreadable


def check_output(output: Path) -> None:
    """ValueError unless a Parquet file can be written there."""
    if output.suffix != ".parquet":
        raise ValueError(f"output: {str(output)!r} must end in .parquet; the features are written in that format")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"output: {str(output)!r} cannot be written; name a file in an existing, writable folder")


def image_files(paths: Sequence[str]) -> Dataset:
    """Image files as a split for `embed`; its labels mean nothing."""
    return image_dataset(image_column(paths=paths), np.zeros(len(paths), dtype=np.int64), ["unknown"], list(paths))


def _table(split: Dataset, rows: range, features: np.ndarray, name: str | None) -> pa.Table:
    images, width = Rows(split), features.shape[1]
    readable = np.isfinite(features[:, 0])
    values = pa.array(np.ascontiguousarray(features).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(values, width, mask=pa.array(~readable))
    labels: pa.Array = pa.nulls(len(rows), pa.string())
    if name is not None:
        names = split.features["label"].names
        labels = pa.array([names[label] for label in dataset_labels(split)[rows.start : rows.stop]], pa.string())
    return pa.table(
        {
            "file": pa.array([images.image(row)["path"] for row in rows], pa.string()),
            "split": pa.array([name] * len(rows), pa.string()),
            "label": labels,
            "vector": vectors,
        }
    )
