"""`livt dataset check`: decode every image of a dataset in parallel and find images that are in several splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ...reporting.blocks import counted
from ..decoding import decode_image, encoded_image
from ..table import Rows
from .parallel import Chunk, map_chunks, split_into_chunks

IMAGES_PER_CHUNK = 256
MAX_LISTED = 20  # unreadable images and duplicates printed; the log lists all unreadable ones


@dataclass
class CheckResult:
    """Result of `check_dataset`; ``str()`` gives the lines to print.

    Attributes:
        images: number of images per split.
        bad_images: "NAME: REASON" of the unreadable images, per split.
        sizes: height and width of the readable images, (N, 2), per split.
        shared: images with the same bytes in two splits, as (split, name, other split, name there).
        repeated: number of images per split that duplicate an earlier one in it.
    """

    images: dict[str, int] = field(default_factory=dict)
    bad_images: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, np.ndarray] = field(default_factory=dict)
    shared: list[tuple[str, str, str, str]] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)

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
            lines += [f"  {reason}" for reason in bad[:MAX_LISTED]]
            lines += [f"  ... and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else []
        pairs = Counter((split, other) for split, _, other, _ in self.shared)
        for (split, other), count in pairs.items():
            lines.append(f"{count} images of {other} are also in {split}, which inflates the accuracy")
        lines += [f"  {split} {name} = {other} {same}" for split, name, other, same in self.shared[:MAX_LISTED]]
        lines += [f"  ... and {len(self.shared) - MAX_LISTED} more"] if len(self.shared) > MAX_LISTED else []
        return "\n".join(lines)


def check_dataset(
    splits: DatasetDict, num_workers: int | None = None, bad_images_log: str | Path | None = None
) -> CheckResult:
    """Decode and hash the images of all splits.

    Args:
        num_workers: number of processes; None uses one per core, 0 runs in this process.
        bad_images_log: file to which all unreadable images are written; not created if there are none.
    """
    rows_of = {split: Rows(rows) for split, rows in splits.items()}
    results = dict(
        map_chunks(_check_chunk, rows_of, split_into_chunks(rows_of, IMAGES_PER_CHUNK), num_workers, "checking")
    )
    found = CheckResult()
    first_with: dict[bytes, tuple[str, int]] = {}
    for split, rows in rows_of.items():
        chunks = sorted((chunk for chunk in results if chunk.split == split), key=lambda chunk: chunk.number)
        found.images[split] = len(rows)
        found.bad_images[split] = [reason for chunk in chunks for reason in results[chunk][0]]
        sizes = [size for chunk in chunks for size in results[chunk][1]]
        found.sizes[split] = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        found.repeated[split] = 0
        for row, digest in enumerate(digest for chunk in chunks for digest in results[chunk][2]):
            if digest is None:
                continue
            first_split, first_row = first_with.setdefault(digest, (split, row))
            if first_split != split:
                found.shared.append((first_split, _name(rows_of[first_split], first_row), split, _name(rows, row)))
            elif first_row != row:
                found.repeated[split] += 1
    log = None if bad_images_log is None else Path(bad_images_log)
    if log is not None and (any(found.bad_images.values()) or log.exists()):  # not the list of an earlier check
        text = "".join(f"{reason}\n" for bad in found.bad_images.values() for reason in bad)
        log.write_text(text, encoding="utf-8")
    return found


def _check_chunk(rows: Rows, chunk: Chunk) -> tuple[list[str], list[tuple[int, int]], list[bytes | None]]:
    """Reasons of unreadable images, sizes of the others, and a hash of each image's bytes (None if unreadable)."""
    bad, sizes, digests = [], [], []
    for row in chunk.rows:
        digest = None
        try:
            data, name = encoded_image(rows.image(row), f"{chunk.split} row {row}")
            height, width = decode_image(data, name).shape[-2:]
            sizes.append((height, width))
            digest = hashlib.blake2b(data, digest_size=16).digest()
        except ValueError as error:
            bad.append(str(error))
        digests.append(digest)
    return bad, sizes, digests


def _name(rows: Rows, row: int) -> str:
    return rows.image(row)["path"] or f"row {row}"
