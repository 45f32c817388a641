"""Example images of a split, for reports, the demo, monitoring and export checks: which ones, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .. import data
from .predictions import ProcessorTransform


def evenly_spaced(total: int, number: int) -> list[int]:
    """Up to ``number`` different indices below ``total`` in equal steps, from the first to the last."""
    return np.unique(np.linspace(0, total - 1, number).round().astype(int)).tolist()


def first_image_of_each_class(split: Dataset, class_counts: Mapping[str, int]) -> dict[str, int]:
    """``{class name: index}`` of the first image of each class in a split, classes with most training images first.

    Args:
        class_counts: training images of each class of the model, by name, in label order. The classes of the split are
            matched with them by name.

    Raises:
        ValueError: the split has classes that the model does not have.
    """
    names = list(class_counts)
    label_of = data.match_labels(split.features["label"].names, names, "the dataset")
    first: dict[str, int] = {}
    for index, label in enumerate(split["label"]):
        first.setdefault(names[label_of[label]], index)
    return dict(sorted(first.items(), key=lambda item: -class_counts[item[0]]))


def image_path(image: Mapping[str, Any], dataset: object) -> str | None:
    """The file of an image as `livt predict` names it, without folders outside the dataset; None if it has no file.

    Args:
        image: with ``path``, as stored in a split.
        dataset: the source that it was loaded from; a local one begins the path with its own name.
    """
    if not image["path"]:
        return None
    path, root = PurePath(image["path"]), Path(str(dataset))
    root = root if root.is_dir() else root.parent
    if dataset is not None and path.is_relative_to(root) and root.name:
        return (root.name / path.relative_to(root)).as_posix()
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def processed_images(split: Dataset, image_processor: Any, indices: Sequence[int]) -> Tensor:
    """``pixel_values`` of some images, uint8 (N, 3, H, W): resized and cropped, not normalized."""
    images = data.ImageDataset(split, ProcessorTransform(image_processor))
    return torch.stack([torch.as_tensor(images[index]["pixel_values"]) for index in indices])
