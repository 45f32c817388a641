"""Datasets on the Hugging Face Hub and folders of Arrow files, both memory-mapped from disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Image

from ...config.hub_ids import similar_name, why_unavailable
from ..table import (
    SPLIT_NAMES,
    checked_labels,
    choose_columns,
    class_names,
    is_unlabeled,
    no_training_split,
    with_class_names,
)

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
    splits = {}
    for split, names in SPLIT_NAMES.items():
        pattern = re.compile(rf"(.*[-_])?({'|'.join(names)})([-_.].*)?\.arrow")
        if files := sorted(file for file in folder.glob("*.arrow") if pattern.fullmatch(file.name)):
            splits[split] = files
    return splits


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
    splits = {split: loaded[name] for split, names in SPLIT_NAMES.items() for name in names if name in loaded}
    if "train" not in splits:
        raise no_training_split(where, "train split", loaded)
    features = splits["train"].features
    image_column, label_column = choose_columns(features, image_column, label_column, where)
    names: list[str] = []
    result = {}
    for split, rows in splits.items():
        labels = rows.select_columns(label_column).with_format("arrow")[:].column(label_column)
        if is_unlabeled(labels, split, where):
            continue
        names = names or class_names(features[label_column], labels)
        labels = with_class_names(labels, rows.features[label_column], names)
        numbers = checked_labels(labels, names, split, where)
        result[split] = _image_and_label(rows, image_column, label_column, names, numbers)
    return DatasetDict(result)


def _image_and_label(rows: Dataset, image_column: str, label_column: str, names: list[str], numbers) -> Dataset:
    feature = ClassLabel(names=names)
    if rows.features[label_column] == feature:
        rows = rows.select_columns([image_column, label_column])
    else:
        rows = rows.select_columns([image_column]).add_column("label", numbers, feature=feature)
        label_column = "label"
    renaming = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return rows.rename_columns(renaming).cast_column("image", Image(decode=False))
