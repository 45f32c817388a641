"""Image folders whose labels are in a metadata file, in the layout of the Hub's ``imagefolder``.

``metadata.csv``, ``.jsonl`` or ``.parquet`` with the columns ``file_name`` (or ``*_file_name``) and a label: one in
each split, or one at the top for all. There, the first folder of a path is the split (``train/im0.jpg``), unless it is
the class of all its images; without splits, all is training data.
"""

from __future__ import annotations

import logging
import os
import posixpath
from pathlib import Path

from datasets import DatasetDict

from ...class_names import abbreviate
from ...reporting.blocks import counted
from ..table import SPLIT_NAMES, no_training_split, split_of
from .lists import divide, labeled_splits
from .tables import Entries, read_table
from .walk import describe_content, image_paths, subfolders

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

logger = logging.getLogger(__name__)


def find_metadata(folder: Path) -> Path | None:
    """The metadata file of a folder. Raises ValueError if there are two."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: has {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def load_metadata(
    folder: Path,
    split_folders: dict[str, Path],
    files: dict[str, Path],
    image_column: str | None = None,
    label_column: str | None = None,
) -> DatasetDict | None:
    """The splits of a folder with metadata files; None if these have no labels, but the folders have.

    Args:
        split_folders: folders of the splits.
        files: metadata file of each split, and under "" the one of ``folder`` itself.
    """
    tables = {split: read_table(file, image_column, label_column, file_name=True) for split, file in files.items()}
    read: dict[str, Entries] = {}
    for split, entries in tables.items():
        if entries is None:
            continue
        place = split_folders.get(split, folder)
        prefix = "" if place == folder else f"{place.name}/"
        entries.paths[:] = [posixpath.normpath(prefix + path) for path in entries.paths]
        read |= {split: entries} if split else _splits_of_one(entries)
    if not read:
        return None
    for split, place in split_folders.items():
        if split not in read:
            read[split] = _by_class_folder(folder, place)
    if "train" not in read:
        raise no_training_split(folder, "training split", read)
    _match_with_files(folder, read)
    splits = {split: read[split] for split in SPLIT_NAMES if split in read and (split == "train" or read[split].paths)}
    return labeled_splits(splits, folder)


def _splits_of_one(entries: Entries) -> dict[str, Entries]:
    """The entries of one metadata file for all, by split."""
    if entries.splits:
        return divide(entries)
    first = [path.split("/")[0] if "/" in path else "" for path in entries.paths]
    labels_of: dict[str, set[str]] = {}
    for place, label in zip(first, entries.labels, strict=True):
        labels_of.setdefault(place, set()).add(label)
    split_folders = {place: split for place in labels_of if (split := split_of(place)) and labels_of[place] != {place}}
    if not split_folders:
        return {"train": entries}
    entries.splits = [split_folders.get(place, "") for place in first]
    inside = [row for row, split in enumerate(entries.splits) if split]
    if len(inside) < len(first):
        others = sorted({place or "." for place in first if place not in split_folders})
        logger.warning(
            f"{entries.file}: {counted(len(first) - len(inside), 'row')} in no split, left out: {abbreviate(others, 5)}"
        )
    return divide(entries.select(inside))


def _by_class_folder(folder: Path, split_folder: Path) -> Entries:
    """A split without metadata beside others that have it: its class folders are the labels."""
    paths, labels = [], []
    for place in subfolders(split_folder):
        found = [Path(os.path.relpath(path, folder)).as_posix() for path in image_paths(place)]
        paths += found
        labels += [place.name] * len(found)
    return Entries(split_folder, paths, labels, [])


def _match_with_files(folder: Path, read: dict[str, Entries]) -> None:
    """Leave out entries without a file; count them, and the images without an entry.

    Raises:
        ValueError: no file of the training split is there.
    """
    images = {Path(os.path.relpath(path, folder)).as_posix() for path in image_paths(folder)}
    unnamed = images - {path for entries in read.values() for path in entries.paths}
    for split, entries in read.items():
        kept = [row for row, path in enumerate(entries.paths) if path in images or (folder / path).is_file()]
        absent = sorted(set(entries.paths) - {entries.paths[row] for row in kept})
        if absent and not kept and split == "train":
            raise ValueError(
                f"{entries.file}: none of its images is in {folder} ({describe_content(folder)}), for example "
                f"{absent[0]}; correct its file names"
            )
        if absent:
            named = abbreviate(absent, 5)
            logger.warning(f"{entries.file}: {counted(len(absent), 'row')} without an image file, left out: {named}")
            read[split] = entries.select(kept)
    if unnamed:
        named = abbreviate(sorted(unnamed), 5)
        logger.warning(
            f"{folder}: {counted(len(unnamed), 'image')} without an entry in the metadata, left out: {named}"
        )
