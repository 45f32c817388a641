"""`livt dataset check`: decode every image of a dataset in parallel, and find copies in several splits or classes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import DatasetDict

from ...reporting.blocks import counted
from ..decoding import decode_image, encoded_image
from ..long_tail import dataset_labels
from ..table import Rows
from .duplicates import SMALLEST_SIDE, Groups, has_contrast, join_near_duplicates, thumbnail
from .parallel import Chunk, map_chunks, split_into_chunks

IMAGES_PER_CHUNK = 256
MAX_LISTED = 20  # unreadable images and duplicates printed; the log and duplicates.csv list all


class CheckedImage(NamedTuple):
    """An image of the dataset: its split and row there, the name of the file, and its class."""

    split: str
    row: int
    file: str
    label: str


NearGroups = list[list[CheckedImage]]


@dataclass
class CheckResult:
    """Result of `check_dataset`; ``str()`` gives the lines to print.

    Attributes:
        images: number of images per split.
        bad_images: "NAME: REASON" of the unreadable images, per split.
        sizes: height and width of the readable images, (N, 2), per split.
        shared: images with the same bytes in two splits, as (split, name, other split, name there).
        repeated: number of images per split that duplicate an earlier one in it.
        contradicting: training images with the same bytes and different labels, as (name, label, name, label).
        identical: groups of images with the same bytes, by split and row.
        near: groups of near-duplicates, each of at least two different files, by split and row.
        too_small, plain: numbers of images that are compared by their bytes only: too small, or of one color.
        digests: hash of the bytes of each image, all splits in order; None for an unreadable one.
        groups: which images belong together, all splits in order.
    """

    images: dict[str, int] = field(default_factory=dict)
    bad_images: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, np.ndarray] = field(default_factory=dict)
    shared: list[tuple[str, str, str, str]] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    contradicting: list[tuple[str, str, str, str]] = field(default_factory=list)
    identical: NearGroups = field(default_factory=list)
    near: NearGroups = field(default_factory=list)
    too_small: int = 0
    plain: int = 0
    digests: list[bytes | None] = field(default_factory=list, repr=False)
    groups: Groups = field(default_factory=lambda: Groups(0), repr=False)

    @property
    def is_faulty(self) -> bool:
        """Whether something is certainly wrong; near-duplicates may be meant."""
        return any(self.bad_images.values()) or bool(self.shared) or bool(self.contradicting)

    def __str__(self) -> str:
        lines = []
        for split, count in self.images.items():
            bad = self.bad_images[split]
            repeated = self.repeated[split]
            lines.append(f"{split}: {count:,} images, {len(bad)} cannot be read, {counted(repeated, 'duplicate')}")
            if len(self.sizes[split]):
                low, middle, high = np.percentile(self.sizes[split], (0, 50, 100), axis=0).astype(int)
                for side, index in (("height", 0), ("width", 1)):
                    lines.append(f"  {side} {low[index]} to {high[index]}, median {middle[index]}")
            lines += _listed([f"  {reason}" for reason in bad])
        pairs = Counter((split, other) for split, _, other, _ in self.shared)
        for (split, other), count in pairs.items():
            verb = "is" if count == 1 else "are"
            lines.append(f"{counted(count, 'image')} of {other} {verb} also in {split}, which inflates the accuracy")
        lines += _listed([f"  {split} {name} = {other} {same}" for split, name, other, same in self.shared])
        if self.contradicting:
            copies = counted(len(self.contradicting), "training image")
            lines.append(f"{copies} under another label than an identical one: one of the two labels is wrong")
        lines += _listed([f"  {name} ({label}) = {same} ({other})" for name, label, same, other in self.contradicting])
        lines += near_lines(self.near)
        if self.too_small or self.plain:
            lines.append(
                f"compared by their bytes only: {counted(self.too_small, 'image')} with a side below {SMALLEST_SIDE} "
                f"pixels, {self.plain:,} of one color"
            )
        return "\n".join(lines)


def between_splits(groups: NearGroups) -> NearGroups:
    """The groups that are in several splits."""
    return [group for group in groups if len({image.split for image in group}) > 1]


def between_classes(groups: NearGroups) -> NearGroups:
    """The training images of the groups in which these have several labels."""
    training = [[image for image in group if image.split == "train"] for group in groups]
    return [group for group in training if len({image.label for image in group}) > 1]


def near_lines(groups: NearGroups, by_features: bool = False) -> list[str]:
    """Lines to print on groups of near-duplicates, found by the hash or by features."""
    equal, inflates = ("similar by features", "may inflate") if by_features else ("nearly equal", "inflates")
    of = "similar by features" if by_features else "of near-duplicates"
    lines, across, classes = [], between_splits(groups), between_classes(groups)
    for (first, split), count in near_copies(across).items():
        lines.append(
            f"warning: {counted(count, 'image')} of {split} {equal} to one of {first}, which {inflates} the accuracy"
        )
    lines += _listed([f"  {_similar(group)}" for group in across])
    if classes:
        alike = "training images similar by features" if by_features else "nearly equal training images"
        lines.append(f"warning: {counted(len(classes), 'group')} of {alike} with different labels")
    lines += _listed([f"  {_similar(group)}" for group in classes])
    if others := [group for group in groups if len({(image.split, image.label) for image in group}) == 1]:
        images = counted(sum(map(len, others)), "image")
        lines.append(f"within a class of a split: {images} in {counted(len(others), 'group')} {of}")
    return lines


def near_copies(groups: NearGroups) -> dict[tuple[str, str], int]:
    """``{(first split, split): images}``: how many images of later splits are in a group with one of the first."""
    return dict(
        Counter((group[0].split, image.split) for group in groups for image in group if image.split != group[0].split)
    )


def _listed(lines: list[str]) -> list[str]:
    return lines[:MAX_LISTED] + ([f"  ... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else [])


def _similar(group: list[CheckedImage]) -> str:
    shown = [f"{image.split} {image.file} ({image.label})" for image in (group if len(group) < 4 else group[:3])]
    return " ~ ".join(shown) + (f" and {len(group) - 3} more" if len(group) > 3 else "")


def check_dataset(
    splits: DatasetDict, num_workers: int | None = None, bad_images_log: str | Path | None = None
) -> CheckResult:
    """Decode and hash the images of all splits, and compare them.

    Args:
        num_workers: number of processes; None uses one per core, 0 runs in this process.
        bad_images_log: file to which all unreadable images are written; not created if there are none.
    """
    rows_of = {split: Rows(rows) for split, rows in splits.items()}
    results = dict(
        map_chunks(_check_chunk, rows_of, split_into_chunks(rows_of, IMAGES_PER_CHUNK), num_workers, "checking")
    )
    found = CheckResult(groups=Groups(sum(map(len, rows_of.values()))))
    first_with: dict[bytes, tuple[str, int, int]] = {}
    thumbnails: dict[int, np.ndarray] = {}  # of the first image with each content
    for split, rows in rows_of.items():
        chunks = sorted((chunk for chunk in results if chunk.split == split), key=lambda chunk: chunk.number)
        found.images[split] = len(rows)
        found.bad_images[split] = [reason for chunk in chunks for reason in results[chunk].bad]
        sizes = [size for chunk in chunks for size in results[chunk].sizes]
        found.sizes[split] = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        found.repeated[split] = 0
        small = (thumbnail for chunk in chunks for thumbnail in results[chunk].thumbnails)
        for row, digest in enumerate(digest for chunk in chunks for digest in results[chunk].digests):
            index = len(found.digests)
            found.digests.append(digest)
            if digest is None:
                continue
            image = next(small)
            first_split, first_row, first_index = first_with.setdefault(digest, (split, row, index))
            if first_index == index:
                if image is not None:
                    thumbnails[index] = image
                continue
            found.groups.join(first_index, index)
            name, first_name = _name(rows, row), _name(rows_of[first_split], first_row)
            if first_split != split:
                found.shared.append((first_split, first_name, split, name))
                continue
            found.repeated[split] += 1
            labels = [splits[split].features["label"].int2str(rows.label(each)) for each in (first_row, row)]
            if split == "train" and labels[0] != labels[1]:
                found.contradicting.append((first_name, labels[0], name, labels[1]))
    found.too_small = len(first_with) - len(thumbnails)
    if thumbnails:
        _compare(found, np.array(list(thumbnails)), np.stack(list(thumbnails.values())))
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(found.digests):
        if digest is not None:
            same[digest].append(index)
    found.identical = near_groups((group for group in same.values() if len(group) > 1), splits)
    different = [group for group in found.groups.members() if len({found.digests[index] for index in group}) > 1]
    found.near = near_groups(different, splits)
    log = None if bad_images_log is None else Path(bad_images_log)
    if log is not None and (any(found.bad_images.values()) or log.exists()):  # not the list of an earlier check
        text = "".join(f"{reason}\n" for bad in found.bad_images.values() for reason in bad)
        log.write_text(text, encoding="utf-8")
    return found


def _compare(found: CheckResult, indices: np.ndarray, thumbnails: np.ndarray) -> None:
    """Join near-duplicates among the images at ``indices``, int64 (N,), with thumbnails, uint8 (N, S, S)."""
    varied = has_contrast(thumbnails)
    found.plain = int((~varied).sum())
    indices, groups = indices[varied], Groups(int(varied.sum()))
    join_near_duplicates(groups, thumbnails[varied])
    for index, root in zip(indices, indices[groups.roots()], strict=True):
        found.groups.join(root, index)


def near_groups(members: Iterable[Sequence[int] | np.ndarray], splits: DatasetDict) -> NearGroups:
    """Groups of images, given by their indices in all splits in order: those of rare training classes first."""
    places = [(split, row) for split, rows in splits.items() for row in range(len(rows))]
    names = {split: rows.features["label"].names for split, rows in splits.items()}
    labels = {split: dataset_labels(rows) for split, rows in splits.items()}
    training = Counter(names["train"][label] for label in labels["train"]) if "train" in labels else Counter()
    rows_of = {split: Rows(rows) for split, rows in splits.items()}
    groups = [
        [
            CheckedImage(s, row, _name(rows_of[s], row), names[s][labels[s][row]])
            for s, row in map(places.__getitem__, group)
        ]
        for group in members
    ]
    return sorted(groups, key=lambda group: min(training[image.label] for image in group))


class _Chunk(NamedTuple):
    """What was found in a chunk: a digest for each image, None if unreadable; the rest of the readable ones."""

    bad: list[str]
    sizes: list[tuple[int, int]]
    digests: list[bytes | None]
    thumbnails: list[np.ndarray | None]


def _check_chunk(rows: Rows, chunk: Chunk) -> _Chunk:
    """Reasons of unreadable images; sizes, hashes of the bytes and thumbnails of the others."""
    found = _Chunk([], [], [], [])
    for row in chunk.rows:
        digest = None
        try:
            data, name = encoded_image(rows.image(row), f"{chunk.split} row {row}")
            image = decode_image(data, name)  # (3, H, W)
            height, width = image.shape[1:]
            found.sizes.append((height, width))
            found.thumbnails.append(thumbnail(image))
            digest = hashlib.blake2b(data, digest_size=16).digest()
        except ValueError as error:
            found.bad.append(str(error))
        found.digests.append(digest)
    return found


def _name(rows: Rows, row: int) -> str:
    return rows.image(row)["path"] or f"row {row}"
