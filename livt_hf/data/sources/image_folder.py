"""A folder of images, one subfolder per class: ``train/CLASS/*.jpg`` with optional validation and test, or
``CLASS/*.jpg``, which is all training data. Nothing is copied or cached: rows contain paths.

Class names are sorted as strings, as torchvision's ImageFolder does ("10" comes before "2").
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict

from ...class_names import abbreviate
from ..long_tail import class_counts
from ..table import SPLIT_NAMES, image_column, image_dataset, leave_out, no_training_split

IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".avif", ".tga")
    + (".ppm", ".pgm", ".pbm", ".pnm")
)


def load_image_folder(folder: Path, rename: Callable[[list[str]], list[str]] | None = None) -> DatasetDict:
    """Read the class folders of ``folder``.

    Args:
        rename: maps folder names to class names; None uses the folder names.

    Raises:
        ValueError: no images, no training split, or a class without training images.
    """
    split_folders = {
        split: folder / name for split, names in SPLIT_NAMES.items() for name in names if (folder / name).is_dir()
    }
    if "train" not in split_folders:
        for other in split_folders.values():
            if class_folders(other):
                raise no_training_split(folder, "train/", [f"{other.name}/"])
        split_folders = {"train": folder}
    names = class_folders(split_folders["train"])
    if not names:
        raise ValueError(
            f"{folder}: no images found; expected {folder}/train/CLASS/*.jpg (with optional validation/ and test/) or "
            f"{folder}/CLASS/*.jpg"
        )
    class_names = rename(names) if rename else names
    splits = {"train": _load_split(split_folders["train"], names, class_names)}
    for split in ("validation", "test"):
        if split in split_folders:
            found = class_folders(split_folders[split])
            unknown = sorted(set(found) - set(names))
            if unknown and len(unknown) == len(found):
                raise ValueError(
                    f"{split_folders[split]}: none of its {len(unknown)} class folders is among the training classes: "
                    f"{abbreviate(unknown)}; rename or remove them"
                )
            splits[split] = _load_split(split_folders[split], names, class_names)
            images = {name: len(image_paths(split_folders[split] / name)) for name in unknown}
            if left := {name: count for name, count in images.items() if count}:
                splits[split] = leave_out(splits[split], left, split_folders[split])
    if empty := [name for name, count in class_counts(splits["train"]).items() if count == 0]:
        raise ValueError(
            f"{split_folders['train']}: class folders without images: {abbreviate(empty)}; add images or remove the "
            "folders"
        )
    return DatasetDict(splits)


def class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, sorted as strings; hidden ones are ignored."""
    return [entry.name for entry in _visible_entries(folder) if entry.is_dir()]


def _load_split(folder: Path, names: list[str], class_names: list[str]) -> Dataset:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = image_paths(folder / name) if (folder / name).is_dir() else []
        paths += found
        labels += [label] * len(found)
    return image_dataset(image_column(paths=paths), labels, class_names, identity=(str(folder), "\n".join(paths)))


def image_paths(folder: str | Path) -> list[str]:
    """Sorted paths of all images in ``folder`` and its subfolders. Includes dangling links, which fail when read."""
    paths = []
    for entry in _visible_entries(folder):
        if entry.is_dir():
            paths += image_paths(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
            paths.append(entry.path)
    return paths


def _visible_entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except PermissionError as error:
        raise ValueError(f"{folder}: no permission to read this folder") from error
