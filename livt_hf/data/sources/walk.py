"""The one walk of folders, for training, `livt predict` and `livt dataset`: which files below a folder are images.

Hidden files and folders and those of operating systems are left out. Links are followed, except for a link to a folder
that contains it. A folder is walked whatever its name; the case of extensions is ignored.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...class_names import abbreviate
from ...reporting.blocks import counted

IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".avif", ".tga")
    + (".ppm", ".pgm", ".pbm", ".pnm")
)
# Photos that people have, in formats that are not decoded here
UNREAD_EXTENSIONS = frozenset(
    (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd", ".svg")
)
# Resource forks of macOS, thumbnails of Synology, trash and repaired files of Windows and Linux.
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))


def image_paths(folder: str | Path) -> list[str]:
    """Sorted paths of all images in ``folder`` and its subfolders. Includes dangling links, which fail when read."""
    return [path for path in file_paths(folder) if is_image(path)]


def unread_photos(folder: str | Path) -> dict[str, int]:
    """Number of files below ``folder`` by extension, of those in `UNREAD_EXTENSIONS`."""
    extensions = (os.path.splitext(path)[1].lower() for path in file_paths(folder))
    return dict(sorted(Counter(extension for extension in extensions if extension in UNREAD_EXTENSIONS).items()))


def has_images(folder: str | Path) -> bool:
    """Whether there is an image in ``folder`` or its subfolders."""
    return any(is_image(path) for path in file_paths(folder))


def is_image(name: str | Path) -> bool:
    """Whether a file's extension is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def subfolders(folder: str | Path) -> list[Path]:
    """The subfolders that are walked, sorted as strings."""
    return [Path(entry.path) for entry in _entries(folder) if _is_folder(entry) and not _is_loop(entry)]


def files_in(folder: str | Path) -> list[Path]:
    """The visible files of ``folder`` itself, sorted as strings."""
    return [Path(entry.path) for entry in _entries(folder) if not _is_folder(entry)]


def file_paths(folder: str | Path) -> Iterator[str]:
    """Paths of all visible files below ``folder``, sorted folder by folder.

    Raises:
        ValueError: a folder that must not be read.
    """
    for entry in _entries(folder):
        if not _is_folder(entry):
            yield entry.path
        elif not _is_loop(entry):
            yield from file_paths(entry.path)


def describe_content(folder: Path) -> str:
    """What is in a folder, for errors: "6 images in train/", "2 other files: .csv, .txt"."""
    paths = list(file_paths(folder))
    images = [path for path in paths if is_image(path)]
    if images:
        places = Counter(os.path.relpath(os.path.dirname(path), folder) for path in images)
        named = [str(folder) if place == "." else f"{place}/" for place in places]
        return f"{counted(len(images), 'image')} in {abbreviate(named, 5)}"
    if paths:
        kinds = sorted({os.path.splitext(path)[1].lower() or "without extension" for path in paths})
        return f"{counted(len(paths), 'other file')}: {abbreviate(kinds, 5)}"
    return "no files" if folder.is_dir() else "no such folder"


def _is_loop(entry: os.DirEntry) -> bool:
    """Whether an entry is a link to a folder that contains it, directly or through the links that led here."""
    if not entry.is_symlink():
        return False
    target = os.path.join(os.path.realpath(entry.path), "")
    parents = Path(os.path.abspath(entry.path)).parents
    return any(os.path.join(os.path.realpath(parent), "").startswith(target) for parent in parents)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if _is_visible(entry.name)), key=lambda entry: entry.name)
    except PermissionError as error:
        raise ValueError(f"{folder}: no permission to read this folder") from error


def _is_visible(name: str) -> bool:
    return name[0] != "." and name.lower() not in SYSTEM_FOLDERS


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
