"""Benchmarks by name: where their images come from, their official lists and their published totals.

Totals: the published lists (Liu et al., CVPR 2019; the iNaturalist 2018 challenge) and the class counts recorded by the
official LiVT code. Shot groups are the default ones of `prior`.

Digits: scikit-learn's handwritten digits (1,797 real 8 x 8 images included in that package) as a small dataset.
Each class has 174 to 183 images: 40 for testing, 14 for validation, and 120 for training before the long tail is cut.
The split does not depend on the seed, so that runs can be compared; the seed selects which training images the tail
keeps.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from datasets import DatasetDict

from ...prior import ClassPrior
from ..long_tail import class_counts
from ..table import image_column, image_dataset

DIGITS_IMAGES_PER_CLASS = {"test": 40, "validation": 14, "train": 120}
DIGIT_NAMES = [str(digit) for digit in range(10)]
DIGITS_IMBALANCE_FACTOR = 50  # 120 images in the largest class, 2 in the smallest


@dataclass(frozen=True)
class KnownSet:
    """A benchmark defined by list files for images that the user has downloaded.

    Attributes:
        lists: official file name of each split's list.
        sizes: number of images in each split.
        largest, smallest: number of training images in the largest and the smallest class.
        groups: number of many-, medium- and few-shot classes.
    """

    lists: dict[str, str]
    sizes: dict[str, int]
    classes: int
    largest: int
    smallest: int
    groups: tuple[int, int, int]


LIST_SETS = {
    "imagenet-lt": KnownSet(
        lists={"train": "ImageNet_LT_train.txt", "validation": "ImageNet_LT_val.txt", "test": "ImageNet_LT_test.txt"},
        sizes={"train": 115_846, "validation": 20_000, "test": 50_000},
        classes=1000,
        largest=1280,
        smallest=5,
        groups=(385, 479, 136),
    ),
    "places-lt": KnownSet(
        lists={"train": "Places_LT_train.txt", "validation": "Places_LT_val.txt", "test": "Places_LT_test.txt"},
        sizes={"train": 62_500, "validation": 7_300, "test": 36_500},
        classes=365,
        largest=4980,
        smallest=5,
        groups=(131, 163, 71),
    ),
    "inat18": KnownSet(
        lists={"train": "iNaturalist18_train.txt", "validation": "iNaturalist18_val.txt"},
        sizes={"train": 437_513, "validation": 24_426},
        classes=8142,
        largest=1000,
        smallest=2,
        groups=(842, 4076, 3224),
    ),
}


@dataclass(frozen=True)
class CifarSet:
    """Where CIFAR is on the Hub, and its number of classes."""

    hub_id: str
    label_column: str
    classes: int


CIFAR_SETS = {
    "cifar10-lt": CifarSet("uoft-cs/cifar10", "label", 10),
    "cifar100-lt": CifarSet("uoft-cs/cifar100", "fine_label", 100),
}
# As ImageNet-BAL to ImageNet-LT: the same number of images in total, equally many per class.
CIFAR_BAL_SETS = {"cifar10-bal": "cifar10-lt", "cifar100-bal": "cifar100-lt"}
CIFAR_IMBALANCE_FACTOR = 100  # the usual and hardest setting of the papers; 5,000 or 500 images in the largest class

IMAGENET_BAL_IMAGES_PER_CLASS = 160


def warn_of_differences(name: str, splits: DatasetDict) -> None:
    """One warning that lists how a benchmark differs from the published one."""
    known = LIST_SETS[name]
    prior = ClassPrior(class_counts(splits["train"]))
    counts = prior.counts
    found = {
        "classes": (len(counts), known.classes),
        **{
            f"{split} images": (len(rows), known.sizes[split]) for split, rows in splits.items() if split in known.sizes
        },
        "largest class": (int(counts.max()), known.largest),
        "smallest class": (int(counts.min()), known.smallest),
        **{
            f"{group}-shot classes": (len(labels), published)
            for (group, labels), published in zip(prior.groups().items(), known.groups, strict=True)
        },
    }
    differences = [f"{what} {here} instead of {there}" for what, (here, there) in found.items() if here != there]
    if differences:
        warnings.warn(f"{name}: differs from the published set: {', '.join(differences)}", stacklevel=3)


def load_digits_dataset() -> DatasetDict:
    """Balanced digits: disjoint train, validation and test splits."""
    return DatasetDict(_digits())


@functools.cache  # one process may load them for many runs
def _digits() -> DatasetDict:
    from sklearn.datasets import load_digits  # takes most of a second

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 .. 16
    shuffle = np.random.RandomState(0).shuffle  # noqa: NPY002  frozen stream: the split never changes
    rows: dict[str, list[int]] = {split: [] for split in DIGITS_IMAGES_PER_CLASS}
    for label in range(10):
        indices = np.flatnonzero(digits.target == label)
        shuffle(indices)
        start = 0
        for split, count in DIGITS_IMAGES_PER_CLASS.items():
            rows[split] += indices[start : start + count].tolist()
            start += count
    splits = {}
    for split in ("train", "validation", "test"):
        images = image_column(contents=[_png(pixels[row]) for row in rows[split]])
        splits[split] = image_dataset(images, digits.target[rows[split]], DIGIT_NAMES, identity=("digits", split))
    return DatasetDict(splits)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def with_imagenet_names(wnids: Sequence[str]) -> list[str]:
    """Append names to ImageNet-1k WordNet ids ("n02012849" -> "n02012849 crane"); other names are kept unchanged.

    The id is kept because two classes are named crane and two maillot.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    name_of = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    return [f"{wnid} {name_of[wnid].split(',')[0]}" if wnid in name_of else wnid for wnid in wnids]
