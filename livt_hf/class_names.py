"""Class names: their order in a config, and matching classes by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

KEY = re.compile(r"(n\d{8}|\d+)(?: |$)")  # a WordNet id, or a number such as iNaturalist's category id


def match_labels(data_names: Sequence[str], model_names: Sequence[str], where: str = "the data") -> np.ndarray:
    """(C_data,) int64, the model's label of each of the data's classes: ``model_label = match_labels(...)[label]``.

    Names are compared whole; if they differ, by a WordNet id or number that they begin with ("n02012849" is
    "n02012849 crane").

    Raises:
        ValueError: classes of the data that the model does not have; both sides' unmatched names are listed.
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
            f"{where}: the model does not know {len(unknown)} of its classes: {_some(unknown)}; the model's classes "
            f"without counterpart: {_some(unused) or 'none'}"
        )
    return np.array([label_of[name] for name in data_names], dtype=np.int64)


def _keys(names: Sequence[str]) -> list[str]:
    """What each name begins with; empty if one has no key or two share one."""
    keys = [match[1] for match in map(KEY.match, names) if match]
    return keys if len(set(keys)) == len(names) else []


def _some(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
