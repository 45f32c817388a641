"""`livt predict --sort_into FOLDER`: copies of the images in folders of their predicted classes."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..files import check_new_folder
from ..reporting.blocks import counted

UNCERTAIN = "uncertain"  # folder of the images that have no label

logger = logging.getLogger(__name__)


def sort_into(results: Iterable[dict[str, Any]], folder: str | Path) -> Iterator[dict[str, Any]]:
    """Copy each image to ``folder/CLASS/FILE`` as its result passes by. An image that could not be read is left out.

    Images without a label (`predict.abstain_below`) go to ``folder/uncertain``. A second file of the same name becomes
    ``FILE_2``. Characters that a folder name cannot have are replaced by "_".

    Args:
        results: from `predict_images` or `abstain_below`.
        folder: new or empty folder.

    Returns:
        The results, unchanged.

    Raises:
        ValueError: the folder is not empty, or cannot be written to.
    """
    return _copied(results, check_new_folder(folder, "sort_into"))


def _copied(results: Iterable[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    folder_of: dict[str | None, Path] = {}
    images = uncertain = 0
    for result in results:
        if "predictions" in result:
            name = result["predictions"][0]["label"]
            if name not in folder_of:
                folder_of[name] = _unused(folder / (UNCERTAIN if name is None else _folder_name(name)))
            _copy(Path(result["image"]), folder_of[name])
            images += 1
            uncertain += name is None
        yield result
    classes = counted(len(folder_of.keys() - {None}), "class")
    unlabeled = f", and {uncertain:,} without a label into {folder_of[None].name}," if uncertain else ""
    logger.info(f"{counted(images - uncertain, 'image')} copied into {classes}{unlabeled} in {folder}")


def _folder_name(name: str) -> str:
    """A class name without what some file system refuses: separators, control characters, dots or spaces at an end."""
    return re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]|^[. ]+|[. ]+$', "_", name) or "_"


def _unused(path: Path) -> Path:
    """The path, or the first of NAME_2, NAME_3, ... that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return candidate


def _copy(image: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(image, _unused(folder / image.name))
    except OSError as error:
        raise ValueError(f"sort_into: {image} cannot be copied to {str(folder)!r}: {error.strerror or error}") from None
