"""A folder of Parquet files in the Hugging Face layout: ``train-*.parquet``, ``validation-*``, ``test-*``, in the
folder itself, in ``data/`` or in the only subfolder that contains any. Only the two columns needed are read.

Splits with up to 1 GiB of images are read into memory. Larger ones stay on disk: a row's path is then
``FILE.parquet#COLUMN/ROW``, and its row group is read when the image is used (`decoding`). Small row groups make that
fast: `livt dataset prepare` writes groups of 8 images.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, Features

from ..table import (
    SPLIT_NAMES,
    checked_labels,
    choose_columns,
    class_names,
    image_dataset,
    image_structs,
    is_unlabeled,
    no_training_split,
    with_class_names,
)
from ..table import image_column as path_column

MAX_BYTES_IN_MEMORY = 2**30
SLOW_ROW_GROUP = 2**25  # 32 MiB: reading one image means reading its group


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """``{split: files in order}``; empty if the folder has no Parquet files in this layout."""
    for place in (folder, folder / "data"):
        if splits := _splits_in(place):
            return splits
    nested = [splits for place in sorted(folder.iterdir()) if place.is_dir() and (splits := _splits_in(place))]
    return nested[0] if len(nested) == 1 else {}


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    splits = {}
    for split, names in SPLIT_NAMES.items():
        files = [
            file for name in names for pattern in (f"{name}-*", name) for file in folder.glob(f"{pattern}.parquet")
        ]
        if files:
            splits[split] = sorted(files)
    return splits


def load_parquet_folder(
    splits: dict[str, list[Path]], image_column: str | None = None, label_column: str | None = None
) -> DatasetDict:
    """The files of each split (`find_parquet`) as a Dataset with the columns "image" (encoded) and "label"."""
    if "train" not in splits:
        first = next(iter(splits.values()))[0]
        raise no_training_split(first.parent, "train-*.parquet", [first.name])
    features = Features.from_arrow_schema(_open(splits["train"][0]).schema_arrow)
    image_column, label_column = choose_columns(features, image_column, label_column, splits["train"][0])

    names: list[str] = []
    datasets = {}
    for split, files in splits.items():
        _check_complete(files)
        labels = _read(files, label_column)
        if is_unlabeled(labels, split, files[0].parent):
            continue
        names = names or class_names(features[label_column], labels)
        own = Features.from_arrow_schema(_open(files[0]).schema_arrow)[label_column]
        labels = with_class_names(labels, own, names)
        in_files = sum(_image_bytes(_open(file), image_column) for file in files) > MAX_BYTES_IN_MEMORY
        images = _references(files, image_column) if in_files else image_structs(_read(files, image_column))
        identity = [(str(file), file.stat().st_mtime_ns, file.stat().st_size, label_column) for file in files]
        datasets[split] = image_dataset(images, checked_labels(labels, names, split, files[0].parent), names, identity)
    return DatasetDict(datasets)


def _check_complete(files: list[Path]) -> None:
    """Compare the number of files with the total in their names (``train-00000-of-00003.parquet``)."""
    for file in files:
        if (of := re.search(r"-of-(\d+)$", file.stem)) and int(of[1]) != len(files):
            raise ValueError(
                f"{file.parent}: contains {len(files)} of the {int(of[1])} files that {file.name} belongs to; "
                "download or prepare the others"
            )


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{file}: not a readable Parquet file ({str(error).splitlines()[0]}); download it again"
        ) from error


def _read(files: list[Path], column: str) -> pa.ChunkedArray:
    """One column of all files."""
    chunks = []
    for file in files:
        try:
            chunks += _open(file).read(columns=[column]).column(column).chunks
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{file}: column {column!r} cannot be read ({str(error).splitlines()[0]})") from error
    try:
        return pa.chunked_array(chunks)
    except pa.ArrowException as error:
        raise ValueError(f"{files[0].parent}: the files of one split differ in column {column!r} ({error})") from error


def _image_bytes(parquet: pq.ParquetFile, column: str) -> int:
    return sum(_group_bytes(parquet, group, column) for group in range(parquet.num_row_groups))


def _group_bytes(parquet: pq.ParquetFile, group: int, column: str) -> int:
    chunks = (parquet.metadata.row_group(group).column(index) for index in range(parquet.metadata.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _references(files: list[Path], column: str) -> pa.Array:
    paths = []
    for file in files:
        parquet = _open(file)
        if parquet.num_row_groups and _group_bytes(parquet, 0, column) > SLOW_ROW_GROUP:
            warnings.warn(
                f"{file}: row groups contain {_group_bytes(parquet, 0, column) / 2**20:.0f} MiB of images each, which "
                "makes reading single images slow; rewrite the dataset once with `livt dataset prepare`",
                stacklevel=2,
            )
        paths += [f"{file.absolute()}#{column}/{row}" for row in range(parquet.metadata.num_rows)]
    return path_column(paths=paths)
