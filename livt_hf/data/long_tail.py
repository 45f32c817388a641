"""Which images a long tail keeps, and how many each class has. Only labels are read, never an image.

The construction is the one of CIFAR-LT (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
2019) as the official LiVT code runs it: per class in label order, one legacy numpy shuffle of the class's indices, of
which the first n are kept.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset, DatasetDict

from .table import row_positions

PROFILES = ("exp", "step")
ORDERS = ("label", "frequency")


def long_tailed_indices(
    labels, imbalance_factor: float, profile: str = "exp", seed: int = 0, order: str = "label"
) -> np.ndarray:
    """Indices of the images that a long tail of the given imbalance factor keeps.

    With C classes, n_max the size of the largest and k the rank of a class:
        exp:   int(n_max * (1 / imbalance_factor) ** (k / (C - 1))) images
        step:  n_max images for the first C // 2 ranks, int(n_max / imbalance_factor) for the others
    A class that has fewer images keeps all of them.

    Args:
        labels: (N,) integers 0 .. C - 1.
        imbalance_factor: largest over smallest class size wanted, at least 1.
        order: what ranks the classes: "label" (as in the papers) or "frequency", the largest class first (which
            keeps the tail of data that are unbalanced already in its place).

    Returns:
        int64 array: class after class in label order, within a class in shuffled order.
    """
    labels = np.asarray(labels)
    if not imbalance_factor >= 1:
        raise ValueError(f"imbalance_factor={imbalance_factor} must be at least 1 (largest class over smallest)")
    if profile not in PROFILES:
        raise ValueError(f"imbalance_profile={profile!r} is unknown; use one of {', '.join(PROFILES)}")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is unknown; use one of {', '.join(ORDERS)}")
    sizes = np.bincount(labels)
    num_classes = len(sizes)
    if num_classes < 2:
        raise ValueError(f"imbalance_factor={imbalance_factor}: a long tail needs at least 2 classes")

    ranks = np.arange(num_classes)
    if order == "frequency":
        ranks[np.argsort(-sizes, kind="stable")] = np.arange(num_classes)
    wanted = [_images_kept(int(sizes.max()), rank, num_classes, imbalance_factor, profile) for rank in ranks.tolist()]
    if min(wanted) < 1:
        raise ValueError(
            f"imbalance_factor={imbalance_factor} leaves the smallest class without an image: the largest class has "
            f"{sizes.max()} images, which is the largest factor possible"
        )

    return _shuffled_heads(labels, wanted, seed)


def _images_kept(n_max: int, rank: int, num_classes: int, imbalance_factor: float, profile: str) -> int:
    if profile == "step":
        return n_max if rank < num_classes // 2 else int(n_max / imbalance_factor)
    return int(n_max * (1.0 / imbalance_factor) ** (rank / (num_classes - 1)))


def balanced_indices(labels, images_per_class: int, seed: int = 0) -> np.ndarray:
    """Indices of ``images_per_class`` images of each class, or all of a smaller one; shuffled as for a long tail."""
    return _shuffled_heads(np.asarray(labels), [images_per_class] * (int(np.max(labels)) + 1), seed)


def _shuffled_heads(labels: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
    """The first ``counts[c]`` of each class's shuffled indices, class after class."""
    ends = np.cumsum(np.bincount(labels))
    shuffle = np.random.RandomState(seed).shuffle  # noqa: NPY002  the published selections come from this generator
    kept = []
    by_class = np.split(np.argsort(labels, kind="stable"), ends[:-1])  # C arrays, each ascending
    for indices, count in zip(by_class, counts, strict=True):
        shuffle(indices)
        kept.append(indices[:count])
    return np.concatenate(kept).astype(np.int64)


def dataset_labels(dataset: Dataset) -> np.ndarray:
    """The label column (N,) as int64, without touching the images."""
    labels = dataset.data.column("label").to_numpy()
    positions = row_positions(dataset)
    return labels if positions is None else labels[positions]


def class_counts(dataset: Dataset | DatasetDict) -> dict[str, int]:
    """``{class name: number of images}`` in label order, classes without an image included with 0.

    Of a DatasetDict the training split is counted.
    """
    if isinstance(dataset, DatasetDict):
        dataset = dataset["train"]
    names = dataset.features["label"].names
    counts = np.bincount(dataset_labels(dataset), minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))
