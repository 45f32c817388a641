"""Near-duplicates by the features of a model: mirrored copies or other shots of one object, which the hash cannot see.

Features are compared by cosine similarity, after the mean of the training features is subtracted: those of ViTs all
point in one direction. A few directions may still hold most of the variance (one held 55 % of it in a masked
autoencoder), so whitened features, of equal variance in all directions, are tried as well; those are compared by which
more copies are recognized. From which similarity on two images count as similar is measured for each model and dataset:

1. 95 % of mildly altered copies of training images (`ALTERATIONS`) reach it, unless
2. unrelated pairs reach it too often: not more than `FALSE_ALARMS` of all pairs compared are expected to.

The second needs the upper tail of the similarity of unrelated pairs, further out than a sample of them goes. A distance
d = 1 - similarity is below x with a probability that grows as x ** power near 0, power being the local intrinsic
dimension. Pairs of one class are more similar than those of two, and have a tail of their own. The estimate is rough:
on CIFAR-10-LT with a small masked autoencoder, 8 of the 28 groups found were unrelated by eye, where 1 was expected.
Where fewer than half of the copies reach the similarity, the model
cannot tell copies from unrelated images, and nothing is compared.

Legend: N images of all splits, D width, R images compared: the first one of each group that the hash has found.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.nn import functional as F

from ..data.decoding import decode_image
from ..data.long_tail import dataset_labels
from ..data.table import IMAGE_TYPE, Rows, image_dataset
from ..data.tools.check import CheckResult, NearGroups, near_groups
from ..data.tools.duplicates import Groups, join_similar
from .predictions import choose_device

COPIED = 200  # training images of which copies are made
REDUCED = 512  # longer side in pixels of the copies of larger images
REACHED, LEAST_REACHED = 0.95, 0.5  # share of the copies at the threshold, and below which the features are of no use
FALSE_ALARMS = 1.0  # expected number at the threshold, among all pairs
SAMPLE = 3000  # images whose pairs show how similar unrelated images are
TAIL = 0.01, 1000  # share, and largest number, of the sampled pairs that make the tail
SMALLEST_TAIL = 10  # pairs
RIDGE = 1e-3  # of the mean variance of a feature
ROUNDING = 1e-6  # of the similarity of two float32 vectors of length 1


def _cropped(image: PIL.Image.Image) -> PIL.Image.Image:
    right, bottom = (max(1, round(0.05 * side)) for side in image.size)
    return image.crop((0, 0, image.width - right, image.height - bottom))


# Mild changes: what any copy may have been through. Mirrored copies are not among those that set the threshold.
ALTERATIONS: dict[str, Callable[[PIL.Image.Image], PIL.Image.Image]] = {
    "JPEG quality 60": lambda image: image,
    "cropped by 5 %": _cropped,
    "20 % darker": lambda image: image.point([round(0.8 * value) for value in range(256)] * 3),
    "mirrored": lambda image: image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
}
QUALITY = {"JPEG quality 60": 60}
REPORTED_ONLY = ("mirrored",)


@dataclass(frozen=True)
class Calibration:
    """The similarity from which on images are similar by features.

    Attributes:
        threshold: cosine similarity of centered features.
        reached: share of the copies of each kind that reach it.
        share: share of the copies that set the threshold, `REPORTED_ONLY` left out.
        pairs: number of pairs of images to compare.
        false_alarms: how many of them are expected to reach the threshold if all are unrelated.
    """

    threshold: float
    reached: Mapping[str, float]
    share: float
    pairs: int
    false_alarms: float

    @property
    def separates(self) -> bool:
        """Whether the features tell copies from unrelated images."""
        return self.share >= LEAST_REACHED

    def __str__(self) -> str:
        copies = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.reached.items())
        start = f"a similarity of {self.threshold:.4f} or more, reached by {100 * self.share:.0f} % of altered copies"
        if not self.separates:
            return (
                f"features of the model cannot tell copies from unrelated images ({start}, the rest being no more "
                "similar than unrelated pairs); near-duplicates are those of the hash alone"
            )
        alarms = f"an estimated {self.false_alarms:.2g} of {self.pairs:,} unrelated pairs (it can be more)"
        return f"similar by features: {start} ({copies}) and by {alarms}"


class SimilarByFeatures(NamedTuple):
    """What the features found beyond the hash: groups as in `CheckResult.near`; None if there are too few images."""

    calibration: Calibration | None
    groups: NearGroups

    def __str__(self) -> str:
        """The threshold in words, or why there is none."""
        return str(self.calibration or "too few images to tell from which similarity of features on they are copies")


def find_similar(
    splits: DatasetDict,
    found: CheckResult,
    features: Mapping[str, np.ndarray],
    compute: Callable[[Dataset], np.ndarray],
    *,
    seed: int = 0,
    device: str | None = None,
) -> SimilarByFeatures:
    """Groups of images that are similar by features and that the hash has not put into one group.

    Args:
        found: of the same splits. Each of its groups of near-duplicates is represented by its first image.
        features: float32 (N, D) of each split; rows of NaN are left out.
        compute: maps a split of altered images to their features.
    """
    device = choose_device(device)
    vectors = torch.cat([torch.from_numpy(features[split]) for split in splits])  # (N, D)
    roots = found.groups.roots()
    readable = ~torch.isnan(vectors[:, 0]).numpy()
    compared = np.flatnonzero((roots == np.arange(len(roots))) & readable)  # (R,)
    vectors = vectors[compared].to(device)
    labels = np.concatenate([dataset_labels(rows) for rows in splits.values()])[compared]
    train = torch.from_numpy(features["train"]).to(device)
    train_rows = np.flatnonzero(~np.isnan(features["train"][:, 0]))
    if not unrelated_tails(vectors, labels, seed):
        return SimilarByFeatures(None, [])
    chosen = np.sort(np.random.default_rng(seed).permutation(train_rows)[:COPIED])
    originals = train[chosen]  # (n, D)
    copies = torch.from_numpy(compute(altered_copies(splits["train"], chosen))).to(device)
    center, whitening = center_and_whitening(train[train_rows])
    tried = []
    for matrix in (None, whitening):
        first, second = (directions(part, center, matrix) for part in (originals, copies))
        similarities = (second.unflatten(0, (len(ALTERATIONS), len(chosen))) * first).sum(dim=2).cpu().numpy()
        tails = unrelated_tails(directions(vectors, center, matrix), labels, seed)
        tried.append((calibrate(dict(zip(ALTERATIONS, similarities, strict=True)), tails), matrix))
    calibration, matrix = max(tried, key=lambda pair: pair[0].share)  # the first, if equal
    if not calibration.separates:
        return SimilarByFeatures(calibration, [])
    vectors = directions(vectors, center, matrix)
    groups = Groups(len(vectors))
    join_similar(groups, vectors, calibration.threshold)
    return SimilarByFeatures(calibration, near_groups([compared[rows] for rows in groups.members()], splits))


def center_and_whitening(train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) of training features (n, D), and the matrix (D, D) after which they have equal variances.

    Variances get `RIDGE` of their mean added, so that directions without any stay small.
    """
    wide = train.double()
    center = wide.mean(dim=0)
    covariance = (wide - center).T @ (wide - center) / len(wide)
    variances, basis = torch.linalg.eigh(covariance)
    floor = RIDGE * variances.mean() + torch.finfo(torch.float32).tiny
    return center.float(), (basis * (variances.clamp_min(0) + floor).rsqrt()).float()


def directions(features: Tensor, center: Tensor, matrix: Tensor | None) -> Tensor:
    """Features (N, D) minus ``center`` (D,), times ``matrix`` (D, D) if there is one, at length 1."""
    moved = features - center
    return F.normalize(moved if matrix is None else moved @ matrix, dim=1)


def altered_copies(train: Dataset, rows: np.ndarray) -> Dataset:
    """Copies of some images of a split: all rows, int64 (n,), under the first of `ALTERATIONS`, then the next."""
    images, encoded = Rows(train), []
    pictures = []
    for row in rows:
        picture = PIL.Image.fromarray(decode_image(images.image(int(row))).permute(1, 2, 0).contiguous().numpy())
        picture.thumbnail((REDUCED, REDUCED))
        pictures.append(picture)
    for name, alter in ALTERATIONS.items():
        for picture in pictures:
            buffer = io.BytesIO()
            alter(picture).save(buffer, "JPEG", quality=QUALITY.get(name, 95), subsampling=0)
            encoded.append({"bytes": buffer.getvalue(), "path": None})
    labels = np.tile(dataset_labels(train)[rows], len(ALTERATIONS))
    column = pa.array(encoded, type=IMAGE_TYPE)
    return image_dataset(column, labels, train.features["label"].names, ("altered", train._fingerprint, rows.tolist()))


class Tail(NamedTuple):
    """Similarities of unrelated pairs: a share is above ``start``, and from there falls as a power of 1 - similarity.

    ``pairs``: number of such pairs among all images.
    """

    pairs: int
    start: float
    share: float
    power: float

    def expected(self, threshold: float) -> float:
        """Number of pairs that reach a threshold; above ``start``, unless all do."""
        ratio = np.log(max(1 - threshold, ROUNDING)) - np.log(1 - self.start)
        return self.pairs * float(np.exp(min(0.0, np.log(self.share) + self.power * ratio)))


def unrelated_tails(vectors: Tensor, labels: np.ndarray, seed: int) -> list[Tail]:
    """Tails of the similarity of pairs of two classes and of pairs of one, from a sample of the images.

    Args:
        vectors: float32 (R, D), of length 1.
        labels: int64 (R,).

    Returns:
        Both tails, one for all pairs if there are too few of either kind, or none if there are too few at all.
    """
    sample = np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]
    chosen = vectors[torch.from_numpy(sample).to(vectors.device)]
    first, second = np.triu_indices(len(sample), k=1)
    similarity = (chosen @ chosen.T).cpu().numpy()[first, second]
    same = labels[sample][first] == labels[sample][second]
    pairs = len(vectors) * (len(vectors) - 1) // 2
    within = int(sum(count * (count - 1) // 2 for count in np.unique(labels, return_counts=True)[1]))
    kinds = [(pairs - within, similarity[~same]), (within, similarity[same])]
    tails = [_tail(count, values) for count, values in kinds if count]
    if None in tails:
        tails = [_tail(pairs, similarity)]
    return [tail for tail in tails if tail is not None]


def _tail(pairs: int, similarities: np.ndarray) -> Tail | None:
    """The tail of sampled similarities (n,), by their median beyond its start: a few copies do not matter to it."""
    share, most = TAIL
    size = max(min(int(share * len(similarities)), most), SMALLEST_TAIL)
    if len(similarities) <= 2 * size:
        return None
    distances = np.maximum(1 - np.partition(similarities, -size - 1)[-size - 1 :].astype(np.float64), ROUNDING)
    start, nearer = distances.max(), np.median(distances)
    power = np.log(2) / max(np.log(start / nearer), ROUNDING)
    return Tail(pairs, float(1 - start), size / len(similarities), float(power))


def calibrate(copies: Mapping[str, np.ndarray], tails: list[Tail]) -> Calibration:
    """The threshold, from the similarity of copies with their originals, (n,) of each kind, and of unrelated pairs."""
    setting = np.concatenate([values for name, values in copies.items() if name not in REPORTED_ONLY])
    threshold = max(float(np.quantile(setting, 1 - REACHED)), _smallest_threshold(tails))
    return Calibration(
        threshold,
        {name: float((values >= threshold).mean()) for name, values in copies.items()},
        float((setting >= threshold).mean()),
        sum(tail.pairs for tail in tails),
        sum(tail.expected(threshold) for tail in tails),
    )


def _smallest_threshold(tails: list[Tail]) -> float:
    """The similarity that `FALSE_ALARMS` unrelated pairs reach, by bisection."""
    low, high = -1.0, 1.0
    while high - low > ROUNDING:
        middle = (low + high) / 2
        if sum(tail.expected(middle) for tail in tails) > FALSE_ALARMS:
            low = middle
        else:
            high = middle
    return high
