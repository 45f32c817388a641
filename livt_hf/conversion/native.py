"""Class names and training counts for a converted classifier, from the user's files or from the checkpoint itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..class_names import check_same_names, label_names
from ..models.modeling_livt import config_for_classes

LABEL_ORDER = (
    "The class counts are the list cls_num of the file itself. Where the data set is a folder, label i is the i-th "
    'class folder in the order of strings, in which "10" stands before "2": with folders named by category numbers, as '
    "for iNaturalist 2018, label i is not category i."
)


def class_fields(
    num_classes: int,
    labels: str | Path | None,
    class_counts: str | Path | None,
    notes: list[str],
    own_counts: Any = None,
    own_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Config fields for the classes, from the user's files, else from what the checkpoint itself has, else LABEL_i.

    Raises:
        ValueError: a file that cannot be read, another number of classes, names that differ or repeat.
    """
    where = f"labels: {labels}" if labels else "the source's class names"
    names = _read_labels(labels) if labels else list(own_names or [f"LABEL_{label}" for label in range(num_classes)])
    if len(names) != num_classes:
        raise ValueError(f"{where}: {len(names)} names, but the classifier has {num_classes} classes")
    if len(set(names)) != num_classes:
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: {repeated!r} stands there twice; give every class a name of its own with --labels")
    if class_counts is not None:
        return config_for_classes(_read_counts(class_counts, names))
    if own_counts is not None:
        if isinstance(own_counts, Sequence) and len(own_counts) == num_classes:
            notes.append(LABEL_ORDER)
            return config_for_classes(dict(zip(names, own_counts, strict=True)))
        notes.append("The list cls_num of the file does not have one count for each class; it is not used.")
    return label_names(names)


def _read_labels(path: str | Path) -> list[str]:
    text = _read_text("labels", path)
    try:
        content = json.loads(text)
    except ValueError:
        return [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        try:
            content = [content[str(label)] for label in range(len(content))]
        except KeyError as error:
            raise ValueError(f"labels: {path}: label {error} is missing; give {{label: name}} from 0 on") from None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"labels: {path}: give a list of names, {{label: name}}, or one name a line")
    return content


def _read_counts(path: str | Path, names: Sequence[str]) -> dict[str, int]:
    try:
        content = json.loads(_read_text("class_counts", path))
    except ValueError as error:
        raise ValueError(f"class_counts: {path}: cannot be read as JSON ({error})") from None
    if isinstance(content, list):
        if len(content) != len(names):
            raise ValueError(f"class_counts: {path}: {len(content)} counts for a classifier of {len(names)} classes")
        return dict(zip(names, content, strict=True))
    if not isinstance(content, dict):
        raise ValueError(f"class_counts: {path}: give {{name: count}}, or a list of counts in label order")
    check_same_names(names, content, "the classes (--labels tells their names and order)", f"class_counts {path}")
    return {name: content[name] for name in names}


def _read_text(option: str, path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{option}: {path}: cannot be read: {reason}") from None
