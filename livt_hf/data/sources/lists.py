"""Datasets given by text files: lines ``path label`` as in the official long-tailed lists, or CSV files.

If each label has exactly one image folder, classes are named after the folders, otherwise after the labels (01 is 1).
Labels that are not numbers are used as names, sorted as strings.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ..table import image_column as path_column
from ..table import image_dataset
from .image_folder import IMAGE_EXTENSIONS

IMAGE_HEADINGS = ("image", "path", "file_name", "filename", "file", "image_path")
LABEL_HEADINGS = ("label", "class", "target", "category")


def load_lists(
    lists: dict[str, Path],
    root: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    rename: Callable[[list[str]], list[str]] | None = None,
) -> DatasetDict:
    """One split per list; paths are relative to ``root``.

    Args:
        image_column, label_column: headings of a CSV file.
        rename: maps the names from folders or labels to class names; None uses them as they are.

    Raises:
        ValueError: a list that cannot be read, does not match the training list, or whose images are not in ``root``.
    """
    read = {split: read_list(file, image_column, label_column) for split, file in lists.items()}
    numbered = all(label.removeprefix("-").isdecimal() for _, labels in read.values() for label in labels)
    if not numbered:
        names = sorted(set(read["train"][1]))
        label_of = {name: label for label, name in enumerate(names)}
    else:
        read = {split: (paths, [str(int(label)) for label in labels]) for split, (paths, labels) in read.items()}
        values = sorted({int(label) for label in read["train"][1]})
        names = _folder_names(*read["train"]) or [str(value) for value in values]
        label_of = {str(value): label for label, value in enumerate(values)}

    class_names = rename(names) if rename else names
    splits = {}
    for split, (paths, labels) in read.items():
        unknown = sorted(set(labels) - set(label_of))
        if unknown:
            line = labels.index(unknown[0]) + 1
            raise ValueError(
                f"{lists[split]}: label {unknown[0]} (entry {line}) is not in the training list {lists['train']}, "
                f"which has {names[0]} to {names[-1]}"
            )
        numbers = np.array([label_of[label] for label in labels], dtype=np.int64)
        if split != "train":
            _check_folders(lists[split], paths, numbers, names)
        prefix = os.path.join(root, "")
        full_paths = [path if os.path.isabs(path) else prefix + path for path in paths]
        _check_root(full_paths, lists[split], root)
        identity = (str(lists[split]), lists[split].stat().st_mtime_ns, str(root))
        splits[split] = image_dataset(path_column(paths=full_paths), numbers, class_names, identity)
    return DatasetDict(splits)


def read_list(
    file: Path, image_column: str | None = None, label_column: str | None = None
) -> tuple[list[str], list[str]]:
    """Paths and labels of a list, as strings."""
    if not file.is_file():
        raise ValueError(f"{file}: no such list file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, PermissionError) as error:
        raise ValueError(f"{file}: not a readable text file ({error})") from error
    entries = (
        _csv_entries(file, text, image_column, label_column) if file.suffix == ".csv" else _list_entries(file, text)
    )
    if not entries:
        raise ValueError(f"{file}: the list is empty")
    paths, labels = zip(*entries, strict=True)
    return list(paths), list(labels)


def _list_entries(file: Path, text: str) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdecimal():
                raise ValueError(f"{file}: line {number} is {line[:80]!r}, not 'path label' with a whole number")
            entries.append((path.rstrip(), str(int(label))))
    return entries


def _csv_entries(file: Path, text: str, image_column: str | None, label_column: str | None) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows:
        return []
    first = [cell.strip() for cell in rows[0]]
    has_heading = not any(os.path.splitext(cell)[1].lower() in IMAGE_EXTENSIONS for cell in first)
    image, label = 0, 1
    if has_heading:
        image = _heading(first, image_column, "image_column", IMAGE_HEADINGS, 0, file)
        label = _heading(first, label_column, "label_column", LABEL_HEADINGS, 1, file)
        rows = rows[1:]
    entries = []
    for number, row in enumerate(rows, start=1 + has_heading):
        if len(row) <= max(image, label) or not row[image].strip() or not row[label].strip():
            raise ValueError(f"{file}: line {number} is {','.join(row)[:80]!r}, not 'path,label'")
        entries.append((row[image].strip(), row[label].strip()))
    return entries


def _heading(
    headings: list[str], wanted: str | None, option: str, usual: tuple[str, ...], default: int, file: Path
) -> int:
    if wanted is not None:
        if wanted not in headings:
            raise ValueError(f"{option}: {file} has no column {wanted!r}; name one of {', '.join(headings)}")
        return headings.index(wanted)
    return next((headings.index(name) for name in usual if name in headings), default)


def _folder_names(paths: list[str], labels: list[str]) -> list[str]:
    """Image folder of each label, in label order; empty unless folders and labels correspond one to one."""
    folder_of: dict[str, str] = {}
    for path, label in zip(paths, labels, strict=True):
        if folder_of.setdefault(label, _folder(path)) != _folder(path):
            return []
    names = [folder_of[label] for label in sorted(folder_of, key=int)]
    return names if all(names) and len(set(names)) == len(names) else []


def _folder(path: str) -> str:
    return path.rsplit("/", 2)[-2] if "/" in path else ""


def _check_folders(file: Path, paths: list[str], labels: np.ndarray, names: list[str]) -> None:
    """Refuse a list that numbers the classes differently from the training list, instead of a bad accuracy."""
    known = set(names)
    for number, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True), start=1):
        folder = _folder(path)
        if folder != names[label] and folder in known:
            raise ValueError(
                f"{file}: entry {number}, {path}, has the label of class {names[label]!r} in the training list; use "
                "lists that number the classes in the same order"
            )


def _check_root(paths: list[str], file: Path, root: Path) -> None:
    """At least one of about 100 sampled images must exist; single missing ones are reported when they are read."""
    sample = paths[:: max(1, len(paths) // 100)]
    if not any(os.path.exists(path) for path in sample):
        raise ValueError(f"{file}: none of its images is under {root}, for example {sample[0]}; correct --data_dir")
