"""scikit-learn's handwritten digits (1,797 real 8 x 8 images that come with the package) as a small data set.

Every class has 174 to 183 images: 40 make the test set, 14 the validation set and 120 the training set before the long
tail is cut. The split is the same for every seed, so that runs can be compared; the seed chooses which training images
the tail keeps.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from datasets import DatasetDict
from sklearn.datasets import load_digits

from .table import image_column, image_dataset

IMAGES_PER_CLASS = {"test": 40, "validation": 14, "train": 120}
NAMES = [str(digit) for digit in range(10)]
IMBALANCE_FACTOR = 50  # 120 images in the largest class, 2 in the smallest


def load_digits_dataset() -> DatasetDict:
    """Balanced digits: train, validation and test, disjoint."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 .. 16
    shuffle = np.random.RandomState(0).shuffle  # noqa: NPY002  frozen stream: the split never changes
    rows: dict[str, list[int]] = {split: [] for split in IMAGES_PER_CLASS}
    for label in range(10):
        indices = np.flatnonzero(digits.target == label)
        shuffle(indices)
        start = 0
        for split, count in IMAGES_PER_CLASS.items():
            rows[split] += indices[start : start + count].tolist()
            start += count
    splits = {}
    for split in ("train", "validation", "test"):
        images = image_column(contents=[_png(pixels[row]) for row in rows[split]])
        splits[split] = image_dataset(images, digits.target[rows[split]], NAMES, identity=("digits", split))
    return DatasetDict(splits)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
