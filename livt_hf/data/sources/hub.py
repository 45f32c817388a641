"""Datasets on the Hugging Face Hub and folders of Arrow files, both memory-mapped from disk."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Image

from ...config.hub_ids import similar_name, why_unavailable
from ..columns import MAX_BYTES_SCANNED, choose_columns, log_label_choice, other_labels
from ..labels import number_labels
from ..table import SPLIT_NAMES, no_training_split, split_of, without_unknown
from .walk import files_in

AnyRows = TypeVar("AnyRows")

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_hub(hub_id: str, image_column: str | None = None, label_column: str | None = None) -> DatasetDict:
    """Open a dataset on the Hub, downloaded at the first use."""
    check_available(hub_id)
    try:
        splits = datasets.load_dataset(hub_id)
    except Exception as error:  # many kinds, from `datasets`, the client and the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        hint = "it is not in the local cache and HF_HUB_OFFLINE is set" if offline else "check the id"
        near = similar_name(hub_id, "dataset")
        raise ValueError(f"dataset: {hub_id!r} cannot be loaded from the Hub ({reason});{near} {hint}") from error
    return as_image_splits(splits, hub_id, image_column, label_column)


def check_available(hub_id: str) -> None:
    """ValueError if the dataset is not in a local cache, and the Hub cannot be reached."""
    if datasets.config.HF_HUB_OFFLINE:
        return  # `datasets` looks into its caches only
    if reason := why_unavailable(hub_id, "dataset"):
        near = similar_name(hub_id, "dataset") or " give another id, or a folder of images"
        raise ValueError(f"dataset: {hub_id!r} cannot be loaded from the Hub: {reason};{near}")


def is_arrow_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_arrow_folder(folder: Path, image_column: str | None = None, label_column: str | None = None) -> DatasetDict:
    """A DatasetDict, or a single Dataset (the training split), written by `save_to_disk`."""
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(f"{folder}: cannot be read as a saved dataset ({str(error).splitlines()[0]})") from error
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    return as_image_splits(splits, folder, image_column, label_column)


def find_arrow(folder: Path) -> dict[str, list[Path]]:
    """``{split: files in order}`` of Arrow files with the split in their names, as in the cache of `datasets`."""
    found: dict[str, list[Path]] = {}
    for file in files_in(folder):
        named = [split for word in re.split(r"[-_.]", file.stem) if (split := split_of(word))]
        if file.suffix.lower() == ".arrow" and named:
            found.setdefault(named[-1], []).append(file)
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def load_arrow_files(
    files: dict[str, list[Path]], where: Path, image_column: str | None = None, label_column: str | None = None
) -> DatasetDict:
    """The Arrow files of each split (`find_arrow`) as a DatasetDict."""
    try:
        splits = {
            split: datasets.concatenate_datasets([Dataset.from_file(str(file)) for file in paths])
            for split, paths in files.items()
        }
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: cannot be read as Arrow files ({str(error).splitlines()[0]})") from error
    return as_image_splits(DatasetDict(splits), where, image_column, label_column)


def as_image_splits(
    loaded: DatasetDict, where: object, image_column: str | None, label_column: str | None
) -> DatasetDict:
    """Keep "train", "validation" and "test" with the columns "image" (left encoded) and "label"."""
    splits = named_splits(loaded, where)
    features = splits["train"].features
    image_column, chosen = choose_columns(features, image_column, label_column, where)
    stored = {split: (_column(rows, chosen), rows.features[chosen]) for split, rows in splits.items()}
    names, numbers = number_labels(stored, chosen, where)
    if label_column is None:
        read = functools.partial(_small_column, splits["train"])
        log_label_choice(chosen, len(names), other_labels(features, chosen, len(numbers["train"].numbers), read))
    return DatasetDict(
        {
            split: without_unknown(
                _image_and_label(splits[split], image_column, chosen, names, labels.numbers),
                labels.unknown,
                f"{where}: {split} split",
            )
            for split, labels in numbers.items()
        }
    )


def named_splits(loaded: Mapping[str, AnyRows], where: object) -> dict[str, AnyRows]:
    """The training, validation and test split of a dataset; others are named in the log.

    Raises:
        ValueError: there is no training split.
    """
    ranked = sorted(loaded, key=_rank)  # of two names of a split, the usual one
    names = {split: name for name in reversed(ranked) if (split := split_of(name))}
    if "train" not in names:
        raise no_training_split(where, "train split", loaded)
    if unused := [name for name in loaded if name not in names.values()]:
        logger.info(f"{where}: not used: {', '.join(f'split {name}' for name in unused)}")
    return {split: loaded[names[split]] for split in SPLIT_NAMES if split in names}


def _rank(name: str) -> int:
    return next((names.index(name.lower()) for names in SPLIT_NAMES.values() if name.lower() in names), 0)


def _column(rows: Dataset, column: str) -> pa.ChunkedArray:
    return rows.select_columns(column).with_format("arrow")[:].column(column)


def _small_column(rows: Dataset, column: str) -> pa.ChunkedArray | None:
    """A column of all rows, if it is small."""
    return _column(rows, column) if rows.data.column(column).nbytes <= MAX_BYTES_SCANNED else None


def _image_and_label(rows: Dataset, image_column: str, label_column: str, names: list[str], numbers) -> Dataset:
    feature = ClassLabel(names=names)
    if rows.features[label_column] == feature:
        rows = rows.select_columns([image_column, label_column])
    else:
        rows = rows.select_columns([image_column]).add_column("label", numbers, feature=feature)
        label_column = "label"
    renaming = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return rows.rename_columns(renaming).cast_column("image", Image(decode=False))
