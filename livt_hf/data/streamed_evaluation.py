"""The validation and test split of a streamed dataset, in bounded memory and without a copy on disk.

Of a folder, splits up to 1 GiB are read into memory and larger ones image by image from their Parquet files, as without
streaming. From the Hub, splits up to 1 GiB (of encoded images) are downloaded into memory; larger ones are left out.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, Image, IterableDataset

from .labels import SplitLabels, Stored, evaluation_labels, is_unlabeled, plain_labels
from .sources import parquet
from .streaming import ImageStream, open_splits, parquet_splits
from .table import IMAGE_TYPE, image_dataset, without_unknown

SPLITS = ("validation", "test")

logger = logging.getLogger(__name__)


def evaluation_splits(source: str | Path, stream: ImageStream) -> DatasetDict:
    """The labeled validation and test split of the dataset of a stream, with the classes of the stream.

    Raises:
        ValueError: a split that cannot be read, or with labels that are missing or none of the training classes.
    """
    folder, found = Path(source).expanduser(), {}
    if folder.is_dir():
        files = parquet_splits(folder)
        for split in (split for split in SPLITS if split in files):
            stored = parquet.read_labels(files[split], stream.label_column)
            labels = _labels(stored, stream, split, source)
            if labels is not None:
                columns = stream.image_column, labels, list(stream.class_counts), stream.label_column
                found[split] = parquet.images_in_files(files[split], *columns)
                number = len(found[split])
                logger.info(f"{source}: {split} split of {number:,} images, read from its files for evaluation")
        return DatasetDict(found)
    opened = open_splits(source)
    for split in (split for split in SPLITS if split in opened):
        rows = _in_memory(opened[split], stream, split, source)
        if rows is not None:
            found[split] = rows
    return DatasetDict(found)


def _labels(stored: Stored, stream: ImageStream, split: str, source: object) -> SplitLabels | None:
    labels = plain_labels(stored[0], stream.label_column, source)
    if is_unlabeled(labels, split, source):
        return None
    return evaluation_labels(labels, stored[1], list(stream.class_counts), stream.label_feature, split, source)


def _in_memory(images: IterableDataset, stream: ImageStream, split: str, source: object) -> Dataset | None:
    """A split of the Hub, downloaded; None if it has no labels or is too large."""
    limit = parquet.MAX_BYTES_IN_MEMORY
    columns = [stream.image_column, stream.label_column]
    images = images.cast_column(stream.image_column, Image(decode=False)).select_columns(columns)
    feature = (images.features or images._resolve_features().features)[stream.label_column]
    encoded, labels, size = [], [], 0
    for row in images:
        encoded.append(row[stream.image_column])
        labels.append(row[stream.label_column])
        size += len(encoded[-1]["bytes"] or b"")
        if size > limit:
            logger.warning(
                f"{source}: the {split} split has more than {limit / 2**30:g} GiB of images and is not kept in memory; "
                "evaluate with `livt evaluate`, which downloads it"
            )
            return None
    known = _labels((pa.chunked_array([pa.array(labels)]), feature), stream, split, source)
    if known is None:
        return None
    identity = (str(source), split, len(labels), size)
    rows = image_dataset(pa.array(encoded, IMAGE_TYPE), known.numbers, list(stream.class_counts), identity)
    logger.info(
        f"{source}: {split} split of {len(labels):,} images ({size / 2**20:.1f} MiB) kept in memory for evaluation"
    )
    return without_unknown(rows, known.unknown, f"{source}: {split} split")
