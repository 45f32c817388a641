"""Validation and test images taken from the training split of a dataset without them: --val_fraction, --test_fraction.

The rule depends on the classes and their images alone, not on --seed or another option, so that every command that is
given the same fractions sees the same splits. The images of a class, in the order of the source, are shuffled by a
generator whose seed is the CRC-32 of the class name. Of n images, the first n * test_fraction are for testing and the
next n * val_fraction for validation, each rounded, but at least one, as long as one is left for training. The test
images are thus the same with and without a validation split.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import DatasetDict

from ..class_names import abbreviate
from .long_tail import dataset_labels
from .table import SPLIT_NAMES

logger = logging.getLogger(__name__)


def hold_out(
    splits: DatasetDict, val_fraction: float | None, test_fraction: float | None, where: object
) -> DatasetDict:
    """``splits`` with the missing ones taken from the training split, whose order is kept.

    Raises:
        ValueError: a fraction out of range, or of a split that is there already.
    """
    wanted = {"test": test_fraction, "validation": val_fraction}
    fractions = {split: fraction for split, fraction in wanted.items() if fraction is not None}
    for split, fraction in fractions.items():
        option = "val_fraction" if split == "validation" else "test_fraction"
        if not 0 < fraction < 1:
            raise ValueError(f"{option}: {fraction} is out of range; it must be above 0 and below 1")
        if split in splits:
            raise ValueError(f"{option}: {where} has a {split} split of {len(splits[split]):,} images; leave it out")
    if not fractions:
        return splits
    if sum(fractions.values()) >= 1:
        raise ValueError("val_fraction: together with --test_fraction, it leaves no training images; lower one of them")
    train = splits["train"]
    rows = held_out_rows(dataset_labels(train), train.features["label"].names, fractions)
    taken = {split: train.select(indices) for split, indices in rows.items()}
    parts = {**splits, **taken}
    parts = {split: parts[split] for split in SPLIT_NAMES if split in parts}
    logger.info(", ".join(f"{split} {len(part):,}" for split, part in parts.items()) + " images after the division")
    return DatasetDict(parts)


def held_out_rows(labels: np.ndarray, names: Sequence[str], fractions: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Sorted rows of "train" and of each split in ``fractions``, in whose order they are taken."""
    rows: dict[str, list[int]] = {split: [] for split in ("train", *fractions)}
    too_small: dict[str, list[str]] = {split: [] for split in fractions}
    ends = np.cumsum(np.bincount(labels, minlength=len(names)))
    by_class = np.split(np.argsort(labels, kind="stable"), ends[:-1])  # C arrays, each sorted
    for name, indices in zip(names, by_class, strict=True):
        shuffle = np.random.RandomState(zlib.crc32(name.encode())).permutation  # noqa: NPY002  a frozen stream
        left = indices[shuffle(len(indices))].tolist()
        for split, fraction in fractions.items():
            number = min(max(1, int(len(indices) * fraction + 0.5)), len(left) - 1)
            if len(indices) and number < 1:
                too_small[split].append(name)
                continue
            rows[split] += left[:number]
            left = left[number:]
        rows["train"] += left
    for split, classes in too_small.items():
        if classes:
            found = f"{len(classes)} of {len(names)} classes {'is' if len(classes) == 1 else 'are'}"
            logger.warning(f"{found} too small for a {split} image: {abbreviate(classes, 5)}")
    return {split: np.sort(np.array(found, dtype=np.int64)) for split, found in rows.items()}
