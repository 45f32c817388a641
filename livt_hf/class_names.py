"""Class names: stored in a config in label order, matched between a dataset and a model, and made printable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KEY = re.compile(r"(n\d{8}|\d+)(?: |$)")  # a WordNet id, or a number such as iNaturalist's category ids
_DIRECTION_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # line breaks, control characters, lone surrogates


def printable(text: Any) -> str:
    """A class or file name for people, on one line.

    Marks that would turn the text beside them around are shown as escapes, such as ``\\u202e``; line breaks and control
    characters become a space.
    """
    escaped = _DIRECTION_MARKS.sub(lambda mark: f"\\u{ord(mark.group()):04x}", str(text))
    return _BREAKS.sub(" ", escaped).strip()


def match_labels(data_names: Sequence[str], model_names: Sequence[str], where: str = "the data") -> np.ndarray:
    """Labels of the dataset's classes in the model: ``model_label = match_labels(...)[data_label]``.

    Full names are compared; if they differ, the WordNet ids or numbers at their beginning ("n02012849" matches
    "n02012849 crane").

    Args:
        where: the dataset, for the error message.

    Returns:
        int64 (classes of the data,).

    Raises:
        ValueError: the dataset has classes that the model does not have; the unmatched names of both are listed.
    """
    label_of = {name: label for label, name in enumerate(model_names)}
    if not set(data_names) <= set(label_of):
        keys, model_keys = _keys(data_names), _keys(model_names)
        if keys and model_keys and set(keys) <= set(model_keys):
            data_names, label_of = keys, {key: label for label, key in enumerate(model_keys)}
    unknown = [name for name in data_names if name not in label_of]
    if unknown:
        unused = sorted(set(label_of) - set(data_names))
        raise ValueError(
            f"{where}: the model does not know {len(unknown)} of its classes: {abbreviate(unknown)}; the model's "
            f"classes without counterpart: {abbreviate(unused) or 'none'}"
        )
    return np.array([label_of[name] for name in data_names], dtype=np.int64)


def _keys(names: Sequence[str]) -> list[str]:
    """The key at the beginning of each name; empty if a name has none, or two names have the same."""
    keys = [match[1] for match in map(KEY.match, names) if match]
    return keys if len(set(keys)) == len(names) else []


def abbreviate(names: Sequence[str], limit: int = 20) -> str:
    """The first names of a list, and how many there are beyond them."""
    return ", ".join(map(printable, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def class_names(config: Any) -> list[str]:
    """The class names in the config of any model, in label order."""
    # Keys are strings where `from_pretrained(id2label=...)` was given such, as in transformers' own examples.
    names = {int(label): str(name) for label, name in config.id2label.items()}
    return [names[label] for label in range(config.num_labels)]


def set_class_names(config: Any, names: Sequence[str]) -> None:
    """Store class names, in label order, in the config of any model."""
    for field, value in label_names(names).items():
        setattr(config, field, value)
    if hasattr(config, "label_names"):  # saved by timm models instead of id2label
        config.label_names = list(names)


def placeholder_names(num_labels: int) -> list[str]:
    """The class names of a transformers config that was created without any."""
    return [f"LABEL_{label}" for label in range(num_labels)]


def counts_in_order(class_counts: Mapping[str, int] | Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """Class counts in the label order of a model.

    Args:
        class_counts: by class name, in any order, or a sequence in label order.
        names: the model's; placeholders are replaced by those of the counts, which then are in label order.

    Raises:
        ValueError: another number of classes, or other names.
    """
    if len(class_counts) != len(names):
        raise ValueError(
            f"class_counts: {len(class_counts)} classes, but the model has {len(names)}; load it with "
            f"num_labels={len(class_counts)}, ignore_mismatched_sizes=True"
        )
    if not isinstance(class_counts, Mapping):
        return dict(zip(names, class_counts, strict=True))
    if list(names) == placeholder_names(len(names)):
        return dict(class_counts)
    check_same_names(names, class_counts, "id2label", "class_counts")
    return {name: class_counts[name] for name in names}


def check_same_names(expected: Sequence[str], found: Sequence[str] | Mapping[str, Any], *where: str) -> None:
    """ValueError if the class names differ, listing those found on one side only; ``where`` names the two sides."""
    known, wanted = set(found), set(expected)
    missing = [name for name in expected if name not in known]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        parts = [
            f"only in {place}: {abbreviate([repr(name) for name in names], 10)}"
            for place, names in zip(where, (missing, unexpected), strict=True)
            if names
        ]
        raise ValueError(f"class names of {where[0]} and {where[1]} differ; {'; '.join(parts)}")


def label_names(class_names: Sequence[str]) -> dict[str, Any]:
    """Config arguments ``id2label`` and ``label2id`` from class names in label order."""
    return {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }
