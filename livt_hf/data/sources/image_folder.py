"""A folder of images, one subfolder per class: ``train/CLASS/*.jpg`` with optional validation and test, or
``CLASS/*.jpg``, which is all training data; or with metadata files (`metadata`). Nothing is copied or cached: rows
contain paths.

A folder is a split if it has the name of one and contains class folders or a metadata file; otherwise it is a class,
such as a class of trains. Class names are sorted as strings, as torchvision's ImageFolder does ("10" comes before "2").
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict

from ...class_names import abbreviate
from ...reporting.blocks import counted
from ..long_tail import class_counts
from ..table import SPLIT_NAMES, image_column, image_dataset, leave_out, no_training_split, split_of
from .metadata import find_metadata, load_metadata
from .tables import TABLE_SUFFIXES, no_labels
from .walk import describe_content, files_in, has_images, image_paths, is_image, subfolders, unread_photos

logger = logging.getLogger(__name__)


def load_image_folder(
    folder: Path,
    rename: Callable[[list[str]], list[str]] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DatasetDict:
    """Read the class folders of ``folder``, or its metadata files.

    Args:
        rename: maps folder names to class names; None uses the folder names.
        image_column, label_column: of metadata files.

    Raises:
        ValueError: no images, no training split, or a class without training images.
    """
    split_folders = find_split_folders(folder)
    places = {"": folder} | split_folders
    metadata = {place: file for place, where in places.items() if (file := find_metadata(where))}
    if metadata and (splits := load_metadata(folder, split_folders, metadata, image_column, label_column)):
        return splits
    if not split_folders:
        split_folders = {"train": folder}
    elif "train" not in split_folders:
        if train := [place for place in subfolders(folder) if split_of(place.name) == "train"]:
            raise no_classes(folder, train[0])
        raise no_training_split(folder, "train/", [f"{other.name}/" for other in split_folders.values()])
    names = class_folders(split_folders["train"])
    if not any(has_images(split_folders["train"] / name) for name in names) or _are_unlabeled_splits(folder, names):
        if metadata:
            raise no_labels(next(iter(metadata.values())))
        raise no_classes(folder, split_folders["train"])
    class_names = rename(names) if rename else names
    splits = DatasetDict({"train": _load_split(split_folders["train"], names, class_names)})
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
        _warn_of_unread_photos(folder)
        raise ValueError(
            f"{split_folders['train']}: class folders without images: {abbreviate(empty)}; add images or remove the "
            "folders"
        )
    _warn_of_images_left_out(folder, split_folders)
    _warn_of_unread_photos(folder)
    return splits


def find_split_folders(folder: Path) -> dict[str, Path]:
    """The subfolders that are splits, by their names and by what is in them.

    Raises:
        ValueError: two folders are the same split.
    """
    found: dict[str, Path] = {}
    for place in subfolders(folder):
        if (split := split_of(place.name)) and _is_split(place):
            if split in found:
                raise ValueError(
                    f"{folder}: {found[split].name}/ and {place.name}/ are both a {split} split; join them, or move "
                    "one of them elsewhere"
                )
            found[split] = place
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _is_split(folder: Path) -> bool:
    return find_metadata(folder) is not None or any(has_images(place) for place in subfolders(folder))


def _are_unlabeled_splits(folder: Path, names: list[str]) -> bool:
    """Whether all folders are named as splits and contain images alone. Beside others, such a folder is a class."""
    return all(split_of(name) for name in names) and not find_split_folders(folder)


def class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, sorted as strings."""
    return [place.name for place in subfolders(folder)]


def _load_split(folder: Path, names: list[str], class_names: list[str]) -> Dataset:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = image_paths(folder / name) if (folder / name).is_dir() else []
        paths += found
        labels += [label] * len(found)
    return image_dataset(image_column(paths=paths), labels, class_names, identity=(str(folder), "\n".join(paths)))


def no_classes(folder: Path, train: Path) -> ValueError:
    """The error for a folder without class folders: what was found there, and what is missing."""
    found = describe_content(folder)
    expected = f"{train}/CLASS/*.jpg" if train != folder else f"{folder}/train/CLASS/*.jpg or {folder}/CLASS/*.jpg"
    tables = [file.name for file in files_in(folder) if file.suffix.lower() in TABLE_SUFFIXES]
    hint = f", or give a table of paths and labels as the dataset: {abbreviate(tables, 3)}" if tables else ""
    if has_images(folder):
        return ValueError(
            f"{folder}: has {found}, but nothing says which class they are; put them into one folder per class "
            f"({expected}), or add a metadata.csv with the columns file_name and label{hint}"
        )
    return ValueError(f"{folder}: no images found ({found}); expected {expected}{hint}")


def _warn_of_unread_photos(folder: Path) -> None:
    """Photos in formats that are not decoded here, such as an iPhone's HEIC."""
    if unread := unread_photos(folder):
        kinds = ", ".join(f"{number:,} {extension}" for extension, number in unread.items())
        logger.warning(f"{folder}: left out, photos in formats that are not read: {kinds}; convert them to JPEG or PNG")


def _warn_of_images_left_out(folder: Path, split_folders: dict[str, Path]) -> None:
    """Images beside the splits, and beside the class folders of a split."""
    for place in split_folders.values():
        if loose := sum(is_image(file) for file in files_in(place)):
            logger.warning(f"{place}: left out, {counted(loose, 'image')} outside the class folders")
    if split_folders["train"] == folder:
        classes = subfolders(folder)
        if len(classes) == 1 and any(has_images(place) for place in subfolders(classes[0])):
            logger.warning(
                f"{folder}: {classes[0].name}/ is the only class; if the folders in it are the classes or splits, name "
                f"{classes[0]} as the dataset"
            )
        return
    for place in subfolders(folder):
        if place not in split_folders.values() and (images := image_paths(place)):
            reason = "no class folders" if split_of(place.name) else "not a split"
            logger.warning(f"{place}: left out, {reason}: {counted(len(images), 'image')}")
