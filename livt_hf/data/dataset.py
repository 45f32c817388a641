"""`ImageDataset`: decoded and transformed samples, seeded one by one, with unreadable images replaced.

Datasets of small images (CIFAR, digits) are decoded once and kept as uint8, because decoding would dominate the cost.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.random import mtrand

from .cropping import Crop, crop_many, crop_one
from .decoding import BadImageError, decode_image
from .loader import ImageLoader, TrainingBatches, training_loader
from .long_tail import dataset_labels
from .table import Rows

MAX_SIDE = 64
MAX_BYTES = 2**28  # 256 MiB: 87,000 images of 32 x 32
Key = int | tuple[int, int]  # an index, or in training (epoch, index)
_NUMPY_GENERATOR = np.random.MT19937()  # replaces numpy's global one: cheaper than copying its state


def log_bad_image(reason: str, log: Path | None) -> None:
    """Append a line to the log, unless another worker, another process or the run before a resume has written it."""
    if log is None:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if reason not in file.read().splitlines():
            file.write(reason + "\n")


def check_bad_image_limit(count: int, limit: int, log: Path | None, last: str) -> None:
    """Raise a BadImageError if ``count`` exceeds ``limit``; it names the log, or else quotes the ``last`` reason."""
    if count > limit:
        where = f"see {log}" if log else f"the last is {last}"
        raise BadImageError(
            f"max_bad_images: {count} training images cannot be read, more than the limit of {limit}; {where}; repair "
            "them or raise the limit"
        )


class DecodedImages:
    """The readable images of ``rows`` that have the size of the first one, as uint8 (N, H, W, 3)."""

    def __init__(self, rows: Rows, first: torch.Tensor):
        height, width = first.shape[-2:]
        self.pixels = torch.zeros(len(rows), height, width, 3, dtype=torch.uint8)
        self.present = np.zeros(len(rows), dtype=bool)  # (N,)
        for index in range(len(rows)):
            try:
                image = decode_image(rows.image(index))
            except ValueError:
                continue  # reported when the sample is read
            if image.shape == first.shape:
                self.pixels[index] = image.permute(1, 2, 0)
                self.present[index] = True

    def get(self, index: int) -> torch.Tensor | None:
        """The image (3, H, W), or None if it is not kept."""
        return self.pixels[index].permute(2, 0, 1) if self.present[index] else None  # (3, H, W)


def decode_if_small(rows: Rows) -> DecodedImages | None:
    """All images decoded if, judging by the first one, they are small and fit in memory; otherwise None."""
    try:
        first = decode_image(rows.image(0)) if len(rows) else None
    except ValueError:
        return None
    if first is None or max(first.shape) > MAX_SIDE or len(rows) * first.numel() > MAX_BYTES:
        return None
    return DecodedImages(rows, first)


class ImageDataset(torch.utils.data.Dataset):
    """Decodes and transforms single images.

    ``dataset[(epoch, index)]`` is a training sample: the transform's dict with "labels" and "index" (both int) added.
    ``dataset[index]`` is the same for evaluation (epoch 0). Each sample is computed with the global generators of
    torch, `random` and numpy seeded from (seed, epoch, index); their previous state is restored afterwards.

    In training, an unreadable image is replaced by the next readable one ("labels" and "index" are then those of the
    replacement), counted, and written to ``bad_images_log`` with the reason. In evaluation it raises a BadImageError.

    Args:
        dataset: columns "image" (not decoded) and "label", as returned by `load_long_tailed`.
        transform: maps an image, uint8 (3, H, W), to a dict of tensors. If it has a true ``draws_first``, batches
            are made by its `draw` and `assemble` (see `transforms`), with the same results.
        max_bad_images: a training process that finds more distinct unreadable images raises a BadImageError.
        bad_images_log: file to which unreadable images are appended, each once.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        seed: int = 0,
        max_bad_images: int = 100,
        bad_images_log: str | Path | None = None,
    ):
        self.rows = Rows(dataset)
        self.decoded = decode_if_small(self.rows)
        self.transform = transform
        self.seed = seed
        self.max_bad_images = max_bad_images
        self.bad_images_log = None if bad_images_log is None else Path(bad_images_log)
        self.is_bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # (N,), shared by all workers

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_images(self) -> int:
        """As ``len()``, which a stream does not have."""
        return len(self.rows)

    @property
    def class_names(self) -> list[str]:
        """In label order."""
        return self.rows.dataset.features["label"].names

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return dataset_labels(self.rows.dataset)

    def loader(self, batches: TrainingBatches, num_workers: int, pin_memory: bool = False) -> ImageLoader:
        """Training micro-batches in the order of ``batches`` (`training_loader`)."""
        return training_loader(self, batches, num_workers, pin_memory)

    @property
    def num_bad_images(self) -> int:
        """Distinct unreadable images found so far by all workers of this process."""
        return int(self.is_bad.sum())

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor | int]:
        with preserved_generators():
            return self._sample(key)

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, torch.Tensor | int]] | dict[str, torch.Tensor]:
        """All samples of a batch, or the batch if the transform has a form for batches; called by DataLoader."""
        with preserved_generators():
            if getattr(self.transform, "draws_first", False):
                return self._batch(keys)
            return [self._sample(key) for key in keys]

    def _sample(self, key: Key) -> dict[str, torch.Tensor | int]:
        image, source = self._image(key)
        self._seed_generators(key)
        return {**self.transform(image), "labels": self.rows.label(source), "index": source}

    def _batch(self, keys: Sequence[Key]) -> dict[str, torch.Tensor]:
        """The samples, collated. Images that are kept decoded are cropped together."""
        transform: Any = self.transform
        pixels = torch.empty(len(keys), transform.image_size, transform.image_size, 3, dtype=torch.uint8)
        indices, drawn = [], []
        kept: list[int] = []  # places in the batch of images that are kept decoded
        crops: list[Crop] = []  # theirs
        for place, key in enumerate(keys):
            index = key[1] if isinstance(key, tuple) else key
            if self.decoded is not None and self.decoded.present[index]:
                self._seed_generators(key)
                crop, rest = transform.draw(*self.decoded.pixels.shape[1:3])
                kept.append(place)
                crops.append(crop)
            else:
                image, index = self._image(key)
                self._seed_generators(key)
                crop, rest = transform.draw(*image.shape[-2:])
                pixels[place] = crop_one(image, crop, transform.image_size).permute(1, 2, 0)  # (S, S, 3)
            indices.append(index)
            drawn.append(rest)
        sources = np.array(indices)
        if self.decoded is not None and kept:
            cropped = crop_many(self.decoded.pixels.numpy(), sources[kept], crops, transform.image_size)
            pixels[torch.tensor(kept)] = cropped
        batch = transform.assemble(pixels, drawn)
        return {**batch, "labels": torch.from_numpy(self.labels[sources]), "index": torch.from_numpy(sources)}

    def _seed_generators(self, key: Key) -> None:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed_generators(sample_seed(self.seed, epoch, index))

    def _image(self, key: Key) -> tuple[torch.Tensor, int]:
        """The image of a key, or in training its replacement, and its index."""
        return self._readable_image(key[1]) if isinstance(key, tuple) else self._read(key)

    def _read(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.decoded.get(index) if self.decoded else None
        try:
            if image is None:
                image = decode_image(self.rows.image(index), name=f"row {index}")
            return image, index
        except ValueError as error:
            raise BadImageError(str(error)) from error

    def _readable_image(self, index: int) -> tuple[torch.Tensor, int]:
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            if self.is_bad[candidate]:
                continue
            try:
                return self._read(candidate)
            except BadImageError as error:
                self._record(candidate, str(error))
        raise BadImageError(f"none of the {len(self)} training images can be read; see {self.bad_images_log}")

    def _record(self, index: int, reason: str) -> None:
        self.is_bad[index] = 1
        log_bad_image(reason, self.bad_images_log)
        check_bad_image_limit(self.num_bad_images, self.max_bad_images, self.bad_images_log, reason)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """64-bit hash of (seed, epoch, index): the finalizer of splitmix64 after each number."""
    state = 0
    for number in (seed, epoch, index):
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def seed_generators(seed: int) -> None:
    """Seed the global CPU generators of torch, `random` and numpy."""
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would also seed the accelerators
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  timm's RandAugment draws from the global generator


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the state of the global CPU generators on exit."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_generator = mtrand.get_bit_generator()
    mtrand.set_bit_generator(_NUMPY_GENERATOR)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
