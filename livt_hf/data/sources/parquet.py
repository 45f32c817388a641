"""A folder of Parquet files in the Hugging Face layout: ``train-*.parquet``, ``validation-*``, ``test-*`` or
``train/*.parquet``, in the folder itself, in ``data/`` or in the only subfolder that contains any. Files without the
name of a split are training data. Only the two columns needed are read.

Splits with up to 1 GiB of images are read into memory. Larger ones stay on disk: a row's path is then
``FILE.parquet#COLUMN/ROW``, and its row group is read when the image is used (`decoding`). Small row groups make that
fast: `livt dataset prepare` writes groups of 8 images.
"""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features

from ..columns import MAX_BYTES_SCANNED, choose_columns, log_label_choice, other_labels
from ..labels import SplitLabels, number_labels
from ..table import SPLIT_NAMES, image_dataset, image_structs, no_training_split, split_of, without_unknown
from ..table import image_column as path_column
from .walk import files_in, has_images, is_image, subfolders

MAX_BYTES_IN_MEMORY = 2**30
SLOW_ROW_GROUP = 2**25  # 32 MiB: reading one image means reading its group


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """``{split: files in order}``; empty if the folder has no Parquet files in this layout."""
    for place in (folder, folder / "data"):
        if place.is_dir() and (splits := _splits_in(place)):
            return splits
    nested = [splits for place in subfolders(folder) if not split_of(place.name) and (splits := _splits_in(place))]
    return nested[0] if len(nested) == 1 else {}


def find_unnamed_parquet(folder: Path) -> dict[str, list[Path]]:
    """All Parquet files of a folder as the training split; none if they accompany images."""
    files = [file for place in (folder, folder / "data") if place.is_dir() for file in _parquet_in(place)]
    return {"train": files} if files and not has_images(folder) else {}


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    """Files named as on the Hub; if none is for training, files and then folders named freely after a split."""
    files = _parquet_in(folder)
    on_hub, freely = (
        _by_split([(re.split(pattern, file.stem)[0], [file]) for file in files]) for pattern in ("-", "[-_.]")
    )
    if on_hub or freely:
        return on_hub if "train" in on_hub else freely
    return _by_split([(place.name, _parquet_in(place)) for place in subfolders(folder) if split_of(place.name)])


def _by_split(named: list[tuple[str, list[Path]]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, files in named:
        if files and (split := split_of(name)):
            found.setdefault(split, []).extend(files)
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _parquet_in(folder: Path) -> list[Path]:
    """Files that hold images: not a metadata.parquet or another table beside image files."""
    files = [file for file in files_in(folder) if file.suffix.lower() == ".parquet" and file.stem != "metadata"]
    return files if files and not any(is_image(file) for file in files_in(folder)) else []


def load_parquet_folder(
    splits: dict[str, list[Path]], image_column: str | None = None, label_column: str | None = None
) -> DatasetDict:
    """The files of each split (`find_parquet`) as a Dataset with the columns "image" (encoded) and "label"."""
    if "train" not in splits:
        first = next(iter(splits.values()))[0]
        raise no_training_split(first.parent, "train-*.parquet", [first.name])
    where = splits["train"][0]
    features = features_of(where)
    image_column, chosen = choose_columns(features, image_column, label_column, where)
    for files in splits.values():
        _check_complete(files)
    stored = {split: read_labels(files, chosen) for split, files in splits.items()}
    names, numbers = number_labels(stored, chosen, where.parent)
    if label_column is None:
        read = functools.partial(_read_small, splits["train"])
        log_label_choice(chosen, len(names), other_labels(features, chosen, len(numbers["train"].numbers), read))
    return DatasetDict(
        {
            split: images_in_files(splits[split], image_column, labels, names, chosen)
            for split, labels in numbers.items()
        }
    )


def images_in_files(
    files: list[Path], image_column: str, labels: SplitLabels, names: list[str], label_column: str
) -> Dataset:
    """The images of a split's files with their labels, in memory or, if they are large, as references."""
    in_files = sum(_column_bytes(_open(file), image_column) for file in files) > MAX_BYTES_IN_MEMORY
    images = _references(files, image_column) if in_files else image_structs(_read(files, image_column))
    identity = [(str(file), file.stat().st_mtime_ns, file.stat().st_size, label_column) for file in files]
    return without_unknown(image_dataset(images, labels.numbers, names, identity), labels.unknown, files[0])


def features_of(file: Path) -> Features:
    """The columns of a file and their types."""
    return Features.from_arrow_schema(_open(file).schema_arrow)


def read_labels(files: list[Path], column: str) -> tuple[pa.ChunkedArray, object]:
    """The labels as stored, and their feature."""
    return _read(files, column), features_of(files[0])[column]


def _read_small(files: list[Path], column: str) -> pa.ChunkedArray | None:
    """A column of all files, if it is small."""
    size = sum(_column_bytes(_open(file), column) for file in files)
    return _read(files, column) if size <= MAX_BYTES_SCANNED else None


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


def _column_bytes(parquet: pq.ParquetFile, column: str) -> int:
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
