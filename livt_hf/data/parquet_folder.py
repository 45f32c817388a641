"""A folder of Parquet files in the Hugging Face layout: ``train-*.parquet``, ``validation-*``, ``test-*``, in the
folder itself, in ``data/`` or in its only sub-folder that has any. Columns that are not needed are not read.

Class names come from the schema's Hugging Face metadata; a plain integer column gets the names "0", "1", ..., a string
column its sorted values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, Image

from .image_folder import SPLIT_FOLDERS
from .tables import IMAGE_TYPE, image_dataset


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """``{split: its files in order}``, empty where the folder has no Parquet files in this layout."""
    for place in (folder, folder / "data"):
        if splits := _splits_in(place):
            return splits
    nested = [splits for place in sorted(folder.iterdir()) if place.is_dir() and (splits := _splits_in(place))]
    return nested[0] if len(nested) == 1 else {}


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    splits = {}
    for split, names in SPLIT_FOLDERS.items():
        files = [
            file for name in names for file in (*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}.parquet"))
        ]
        if files:
            splits[split] = sorted(files)
    return splits


def load_parquet_folder(
    splits: dict[str, list[Path]], image_column: str | None = None, label_column: str | None = None
) -> DatasetDict:
    """The files of each split as one table of two columns, images still encoded."""
    if "train" not in splits:
        first = next(iter(splits.values()))[0]
        raise ValueError(f"{first.parent}: no train-*.parquet beside {first.name}; a training split is needed")
    features = _features(splits["train"][0])
    image_column = _choose(image_column, "image_column", features, _is_image, splits["train"][0])
    label_column = _choose(label_column, "label_column", features, _is_label, splits["train"][0])

    names: list[str] | None = getattr(features[label_column], "names", None)
    datasets = {}
    for split, files in splits.items():
        table = _read(files, [image_column, label_column])
        if names is None:
            names = _names_from_values(table[label_column])
        labels = _labels(table[label_column], names, split, files[0].parent)
        identity = [(str(file), file.stat().st_mtime_ns, file.stat().st_size, label_column) for file in files]
        datasets[split] = image_dataset(_images(table[image_column]), labels, names, identity)
    return DatasetDict(datasets)


def _features(file: Path) -> Features:
    try:
        return Features.from_arrow_schema(pq.read_schema(file))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({_first_line(error)}); fetch it again") from error


def _read(files: list[Path], columns: list[str]) -> pa.Table:
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, columns=columns, memory_map=True).replace_schema_metadata(None))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable Parquet file ({_first_line(error)}); fetch it again") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(f"{files[0].parent}: the files of one split differ in their columns ({error})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _is_image(feature: object) -> bool:
    return isinstance(feature, Image)


def _is_label(feature: object) -> bool:
    return isinstance(feature, ClassLabel)


def _choose(column: str | None, option: str, features: Features, fits, file: Path) -> str:
    """The column named by the user, or the only one of the right kind, or the one called as ours."""
    if column is not None:
        if column not in features:
            raise ValueError(f"--{option} {column}: {file} has no such column; its columns are {', '.join(features)}")
        return column
    candidates = [name for name, feature in features.items() if fits(feature)]
    ours = option.removesuffix("_column")
    if len(candidates) != 1 and ours in features:
        return ours
    if len(candidates) != 1:
        kind = f"which of {', '.join(candidates)}" if candidates else f"which of its columns {', '.join(features)}"
        raise ValueError(f"{file}: {kind} is the {ours}? Name it with --{option}")
    return candidates[0]


def _images(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Images as struct(bytes, path), whatever of the two the file stores."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        chunks = [
            pa.StructArray.from_arrays(
                [chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())], fields=list(IMAGE_TYPE)
            )
            for chunk in column.chunks
        ]
        return pa.chunked_array(chunks, IMAGE_TYPE)
    if not pa.types.is_struct(column.type) or {field.name for field in column.type} < {"bytes", "path"}:
        raise ValueError(f"--image_column: the column holds {column.type}, not images (encoded bytes)")
    return column.cast(IMAGE_TYPE)


def _names_from_values(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_integer(column.type):
        return [str(label) for label in range(pc.max(column).as_py() + 1)]
    return sorted(str(value) for value in pc.unique(column).drop_null().to_pylist())


def _labels(column: pa.ChunkedArray, names: list[str], split: str, folder: Path) -> np.ndarray:
    """(N,) int64, checked: the first row whose label is missing or out of range is named."""
    if pa.types.is_integer(column.type):
        labels = pc.fill_null(column, -1).to_numpy()
    else:
        labels = pc.fill_null(pc.index_in(column.cast(pa.string()), pa.array(names)), -1).to_numpy()
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{folder}: label {column[row].as_py()!r} of {split} row {row} is not one of the {len(names)} classes "
            f"(0 to {len(names) - 1}; {len(wrong)} such rows); correct or remove them"
        )
    return labels
