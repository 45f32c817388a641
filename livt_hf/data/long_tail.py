"""Long-tailed subsets and class counts, from the labels alone.

As CIFAR-LT (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019) in the official LiVT
code: for each class in label order, shuffle its indices with numpy's legacy generator and keep the first n.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from .columns import choose_label_column
from .labels import class_names, label_numbers, plain_labels
from .table import row_positions

PROFILES = ("exp", "step")
ORDERS = ("label", "frequency")


def long_tailed_indices(
    labels, imbalance_factor: float, profile: str = "exp", seed: int = 0, order: str = "label"
) -> np.ndarray:
    """Indices of a long-tailed subset with the given imbalance factor.

    With C classes, n_max images in the largest one, and k the rank of a class (0 first):
        exp:   int(n_max * (1 / imbalance_factor) ** (k / (C - 1))) images
        step:  n_max images for the first C // 2 ranks, int(n_max / imbalance_factor) for the others
    A class with fewer images keeps all of them.

    Args:
        labels: (N,) integers 0 .. C - 1.
        imbalance_factor: ratio of the largest to the smallest class size, at least 1.
        profile: "exp" or "step".
        order: ranks classes by "label" (as in the papers) or by "frequency", largest first (which preserves the order
            of sizes in data that are imbalanced already).

    Returns:
        int64 array: class by class in label order, shuffled within each class.

    Raises:
        ValueError: fewer than 2 classes, an unknown option, or a factor that leaves a class without images.
    """
    labels = np.asarray(labels)
    if not imbalance_factor >= 1:
        raise ValueError(f"imbalance_factor: {imbalance_factor} must be at least 1 (largest over smallest class)")
    if profile not in PROFILES:
        raise ValueError(f"imbalance_profile: {profile!r} is unknown; use one of {', '.join(PROFILES)}")
    if order not in ORDERS:
        raise ValueError(f"order: {order!r} is unknown; use one of {', '.join(ORDERS)}")
    sizes = np.bincount(labels)
    num_classes = len(sizes)
    if num_classes < 2:
        raise ValueError(f"imbalance_factor: a long tail needs at least 2 classes, got {num_classes}; leave it out")

    ranks = np.arange(num_classes)
    if order == "frequency":
        ranks[np.argsort(-sizes, kind="stable")] = np.arange(num_classes)
    wanted = [_images_kept(int(sizes.max()), rank, num_classes, imbalance_factor, profile) for rank in ranks.tolist()]
    if min(wanted) < 1:
        raise ValueError(
            f"imbalance_factor: {imbalance_factor} leaves the smallest class without images; use at most "
            f"{sizes.max()}, the number of images in the largest class"
        )

    return _shuffled_heads(labels, wanted, seed)


def _images_kept(n_max: int, rank: int, num_classes: int, imbalance_factor: float, profile: str) -> int:
    if profile == "step":
        return n_max if rank < num_classes // 2 else int(n_max / imbalance_factor)
    return int(n_max * (1.0 / imbalance_factor) ** (rank / (num_classes - 1)))


def balanced_indices(labels, images_per_class: int, seed: int = 0) -> np.ndarray:
    """Indices of up to ``images_per_class`` images per class, selected and ordered as by `long_tailed_indices`."""
    return _shuffled_heads(np.asarray(labels), [images_per_class] * (int(np.max(labels)) + 1), seed)


def _shuffled_heads(labels: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
    """The first ``counts[c]`` shuffled indices of each class c, class by class."""
    ends = np.cumsum(np.bincount(labels))
    shuffle = np.random.RandomState(seed).shuffle  # noqa: NPY002  the generator of the published subsets
    kept = []
    by_class = np.split(np.argsort(labels, kind="stable"), ends[:-1])  # C arrays, each sorted
    for indices, count in zip(by_class, counts, strict=True):
        shuffle(indices)
        kept.append(indices[:count])
    return np.concatenate(kept).astype(np.int64)


def dataset_labels(dataset: Dataset) -> np.ndarray:
    """The label column (N,) as int64, without reading the images."""
    labels = dataset.data.column("label").to_numpy()
    positions = row_positions(dataset)
    return labels if positions is None else labels[positions]


def class_counts(dataset: Dataset | DatasetDict, label_column: str | None = None) -> dict[str, int]:
    """``{class name: number of images}`` of any dataset of `datasets`, in label order; the images are not read.

    The order is that of a ClassLabel, including classes with 0 images; else numeric for integers, and sorted for
    strings (`labels`). The i-th entry is label i, as the losses take it, for a ClassLabel and for integers 0, 1, ...
    without gaps; other labels are to be numbered in this order.

    Args:
        dataset: of a DatasetDict, the training split is counted.
        label_column: by default "label", or else the only ClassLabel or the usual name (`columns`).

    Raises:
        ValueError: no such column, or an image with no or several labels.
    """
    if isinstance(dataset, DatasetDict):
        dataset = dataset["train"]
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset: {type(dataset).__name__} is not a datasets.Dataset; count the labels of another one with "
            "collections.Counter"
        )
    features = dataset.features
    if label_column is None and "label" in features:
        label_column = "label"
    column = choose_label_column(features, label_column, "the dataset")
    stored = dataset.data.column(column)
    positions = row_positions(dataset)
    labels = stored if positions is None else stored.take(pa.array(positions))
    labels = plain_labels(labels, column, "the dataset")
    names = class_names(features[column], labels)
    numbers = label_numbers(labels, features[column], names, features[column], f"column {column!r},", "the dataset")
    return dict(zip(names, np.bincount(numbers, minlength=len(names)).tolist(), strict=True))
