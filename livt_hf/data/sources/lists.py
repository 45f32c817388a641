"""Datasets given by text files: lines ``path label`` as in the official long-tailed lists, or tables (`tables`).

If each label has exactly one image folder, classes are named after the folders, otherwise after the labels (01 is 1).
Labels that are not numbers are used as names, sorted as strings.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ...class_names import abbreviate
from ...reporting.blocks import counted
from ..table import SPLIT_NAMES, image_dataset, leave_out
from ..table import image_column as path_column
from .tables import Entries, find_delimiter, read_table, read_text
from .walk import describe_content, image_paths, is_image

WHOLE = re.compile(r"-?\d{1,18}(\.0*)?", re.ASCII)  # as pandas writes integers, also beside missing ones

logger = logging.getLogger(__name__)


def load_lists(
    lists: dict[str, Path],
    root: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    rename: Callable[[list[str]], list[str]] | None = None,
) -> DatasetDict:
    """One split per list; paths are relative to ``root``.

    A table with a column "split" that is the only list gives all splits.

    Args:
        image_column, label_column: headings of a table.
        rename: maps the names from folders or labels to class names; None uses them as they are.

    Raises:
        ValueError: a list that cannot be read, does not match the training list, or whose images are not in ``root``.
    """
    read = {split: located(read_list(file, image_column, label_column), root) for split, file in lists.items()}
    if set(read) == {"train"} and read["train"].splits:
        read = divide(read["train"])
        logger.info(f"{lists['train']}: its column of splits gives {', '.join(read)}")
    return labeled_splits(read, root, name_after_folders=True, rename=rename)


def divide(entries: Entries) -> dict[str, Entries]:
    """The entries of each split."""
    rows_of: dict[str, list[int]] = {}
    for row, split in enumerate(entries.splits):
        rows_of.setdefault(split, []).append(row)
    if "train" not in rows_of:
        raise ValueError(f"{entries.file}: no row of its {', '.join(rows_of)} is of a training split; add one")
    return {split: entries.select(rows_of[split]) for split in SPLIT_NAMES if split in rows_of}


def labeled_splits(
    read: dict[str, Entries],
    root: Path,
    name_after_folders: bool = False,
    rename: Callable[[list[str]], list[str]] | None = None,
) -> DatasetDict:
    """The entries of each split as a DatasetDict; see `load_lists`."""
    written = {label for entries in read.values() for label in entries.labels}
    numbered = all(WHOLE.fullmatch(label) for label in written)
    if numbered:
        whole = {label: str(int(label.partition(".")[0])) for label in written}  # 01 and 1.0 are 1
        for entries in read.values():
            entries.labels = [whole[label] for label in entries.labels]
        values = sorted({int(label) for label in read["train"].labels})
        names = (name_after_folders and _folder_names(read["train"])) or [str(value) for value in values]
        label_of = {str(value): label for label, value in enumerate(values)}
    else:
        names = sorted(set(read["train"].labels))
        label_of = {name: label for label, name in enumerate(names)}

    class_names = rename(names) if rename else names
    splits = {}
    for split, entries in read.items():
        if split != "train" and set(entries.labels) == {"-1"}:
            warnings.warn(f"{entries.file}: the {split} split has no labels and is ignored", stacklevel=2)
            continue
        unknown = sorted(set(entries.labels) - set(label_of))
        left: dict[str, int] = {}
        # As in `evaluation_labels`, an unknown number is an error, unless one table numbers all splits.
        if split != "train" and not (numbered and name_after_folders and not entries.splits):
            known = [row for row, label in enumerate(entries.labels) if label in label_of]
            if known:
                left, unknown = {label: entries.labels.count(label) for label in unknown}, []
                entries = entries.select(known)
        if unknown:
            line = entries.labels.index(unknown[0]) + 1
            raise ValueError(
                f"{entries.file}: label {unknown[0]} (entry {line}) is not in the training list {read['train'].file}, "
                f"which has {names[0]} to {names[-1]}"
            )
        numbers = np.array([label_of[label] for label in entries.labels], dtype=np.int64)
        if split != "train" and name_after_folders and numbered:
            _check_folders(entries, numbers, names)
        prefix = os.path.join(root, "")
        paths = [path if os.path.isabs(path) else prefix + path for path in entries.paths]
        identity = (str(entries.file), entries.file.stat().st_mtime_ns, str(root), *([split] if entries.splits else []))
        splits[split] = image_dataset(path_column(paths=paths), numbers, class_names, identity)
        if left:
            splits[split] = leave_out(splits[split], left, f"{entries.file}: {split} split")
    return DatasetDict(splits)


def read_list(file: Path, image_column: str | None = None, label_column: str | None = None) -> Entries:
    """Paths and labels of an official list or a table."""
    if file.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".parquet") and file.is_file():
        text = read_text(file)
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        if is_image(first.rpartition(" ")[0]) or find_delimiter(text) is None:
            return _official(file, text)
    entries = read_table(file, image_column, label_column)
    assert entries is not None  # only of a metadata file
    if not entries.paths:
        raise ValueError(f"{file}: none of its rows has a label; name the column with --label_column")
    return entries


def _official(file: Path, text: str) -> Entries:
    paths, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdecimal():
                raise ValueError(
                    f"{file}: line {number} is {line[:80]!r}, not 'path label' with a whole number; separate path and "
                    "label by commas or tabs if labels are names"
                )
            paths.append(path.rstrip())
            labels.append(str(int(label)))
    if not paths:
        raise ValueError(f"{file}: the list is empty")
    return Entries(file, paths, labels, [])


def _folder_names(entries: Entries) -> list[str]:
    """Image folder of each label, in label order; empty unless folders and labels correspond one to one."""
    folder_of: dict[str, str] = {}
    for path, label in zip(entries.paths, entries.labels, strict=True):
        if folder_of.setdefault(label, _folder(path)) != _folder(path):
            return []
    names = [folder_of[label] for label in sorted(folder_of, key=int)]
    return names if all(names) and len(set(names)) == len(names) else []


def _folder(path: str) -> str:
    return path.rsplit("/", 2)[-2] if "/" in path else ""


def _check_folders(entries: Entries, labels: np.ndarray, names: list[str]) -> None:
    """Refuse a list that numbers the classes differently from the training list, instead of a bad accuracy."""
    known = set(names)
    for number, (path, label) in enumerate(zip(entries.paths, labels.tolist(), strict=True), start=1):
        folder = _folder(path)
        if folder != names[label] and folder in known:
            raise ValueError(
                f"{entries.file}: entry {number}, {path}, has the label of class {names[label]!r} in the training "
                "list; use lists that number the classes in the same order"
            )


def located(entries: Entries, root: Path) -> Entries:
    """The entries with the paths of their images.

    At least one of about 100 sampled images must exist; single missing ones are reported when they are read. If none
    does, paths may be ids: file names without their extension or folder, which are looked up below ``root``.

    Raises:
        ValueError: none of the images is found, or an id is that of several images.
    """
    paths = entries.paths
    sample = paths[:: max(1, len(paths) // 100)]
    if any(os.path.exists(os.path.join(root, path)) for path in sample):
        return entries
    images_of = _images_by_id(root)
    kept, missing = [], []
    for row, path in enumerate(paths):
        images = images_of.get(_key(path), [])
        if len(images) > 1:
            raise ValueError(
                f"{entries.file}: {path!r} is the id of {len(images)} images below {root}: {abbreviate(images, 3)}; "
                "write their paths"
            )
        if images:
            paths[row] = images[0]
            kept.append(row)
        else:
            missing.append(path)
    if not kept:
        raise ValueError(
            f"{entries.file}: none of its images is under {root} ({describe_content(root)}), for example "
            f"{os.path.join(root, sample[0])}; correct --data_dir"
        )
    if missing:
        logger.warning(
            f"{entries.file}: {counted(len(missing), 'row')} without an image below {root}, left out: "
            f"{abbreviate(missing, 5)}"
        )
    return entries.select(kept)


def _images_by_id(root: Path) -> dict[str, list[str]]:
    """Images below a folder by their path and by their name, each with and without its extension."""
    images_of: dict[str, list[str]] = {}
    for path in image_paths(root):
        relative = Path(os.path.relpath(path, root)).as_posix()
        name = os.path.basename(relative)
        for key in {relative, os.path.splitext(relative)[0], name, os.path.splitext(name)[0]}:
            images_of.setdefault(_key(key), []).append(relative)
    return images_of


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path)  # a Mac's file names are decomposed
