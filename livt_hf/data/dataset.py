"""Images ready for training: decoding, transforming, and what becomes of an image that cannot be read.

Sets of small images (CIFAR, digits) are decoded once and kept as uint8, since decoding would cost the most.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.random import mtrand

from .decoding import BadImageError, decode_image
from .loader import ImageLoader, TrainingBatches, training_loader
from .long_tail import dataset_labels
from .table import Rows

MAX_SIDE = 64
MAX_BYTES = 2**28  # 256 MiB: 87,000 images of 32 x 32
_NUMPY_GENERATOR = np.random.MT19937()  # stands in for numpy's global one: swapping is cheaper than copying its state


def log_bad_image(reason: str, log: Path | None) -> None:
    """Append a line to the log, unless it is there already: from another worker or process, or from before a resume."""
    if log is None:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if reason not in file.read().splitlines():
            file.write(reason + "\n")


def stop_if_too_many(count: int, limit: int, log: Path | None, last: str) -> None:
    if count > limit:
        where = f"see {log}" if log else f"the last is {last}"
        raise BadImageError(
            f"{count} training images cannot be read, more than --max_bad_images {limit}; {where}; repair them or "
            "raise the limit"
        )


class DecodedImages:
    """The images of ``rows`` as uint8 (N, H, W, 3), those that have the size of the first and can be read."""

    def __init__(self, rows: Rows, first: torch.Tensor):
        height, width = first.shape[-2:]
        self.pixels = torch.zeros(len(rows), height, width, 3, dtype=torch.uint8)
        self.present = np.zeros(len(rows), dtype=bool)  # (N,)
        for index in range(len(rows)):
            try:
                image = decode_image(rows.image(index))
            except ValueError:
                continue  # reported by whoever asks for it
            if image.shape == first.shape:
                self.pixels[index] = image.permute(1, 2, 0)
                self.present[index] = True

    def get(self, index: int) -> torch.Tensor | None:
        return self.pixels[index].permute(2, 0, 1) if self.present[index] else None  # (3, H, W)


def decode_if_small(rows: Rows) -> DecodedImages | None:
    """All images decoded, if the first one tells that they are small and fit; otherwise None."""
    try:
        first = decode_image(rows.image(0)) if len(rows) else None
    except ValueError:
        return None
    if first is None or max(first.shape) > MAX_SIDE or len(rows) * first.numel() > MAX_BYTES:
        return None
    return DecodedImages(rows, first)


class ImageDataset(torch.utils.data.Dataset):
    """Decodes and transforms single images.

    ``dataset[(epoch, index)]`` is the transform's dict with "labels" and "index" added; a plain ``dataset[index]`` is
    the same for evaluation (epoch 0). While a sample is made, the global generators of torch, `random` and numpy are
    seeded from (seed, epoch, index); afterwards they are what they were.

    In training, an image that cannot be read is replaced by the next one that can ("labels" and "index" are then those
    of the replacement), counted, and written to ``bad_images_log`` with the reason. In evaluation it is an error.

    Args:
        dataset: columns "image" (not decoded) and "label", as `load_long_tailed` gives them.
        max_bad_images: a training process that meets more different bad images than this stops with a BadImageError.
        bad_images_log: file to which bad images are appended, each once.
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
        self.is_bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # (N,), one for all workers

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @property
    def class_names(self) -> list[str]:
        """In label order."""
        return self.rows.dataset.features["label"].names

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return dataset_labels(self.rows.dataset)

    def loader(self, batches: TrainingBatches, num_workers: int, pin_memory: bool = False) -> ImageLoader:
        """Training micro-batches in the order of ``batches``."""
        return training_loader(self, batches, num_workers, pin_memory)

    @property
    def num_bad_images(self) -> int:
        """Different bad images met so far, by all workers of this process."""
        return int(self.is_bad.sum())

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict[str, torch.Tensor | int]]:
        """All samples of a batch; what a DataLoader calls."""
        with generators_kept():
            return [self._sample(key) for key in keys]

    def _sample(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        if isinstance(key, tuple):
            epoch, index = key
            image, label, source = self._readable_image(index)
        else:
            epoch, index = 0, key
            image, label, source = self._read(index)
        seed_generators(sample_seed(self.seed, epoch, index))
        return {**self.transform(image), "labels": label, "index": source}

    def _read(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = self.decoded.get(index) if self.decoded else None
        try:
            if image is None:
                image = decode_image(self.rows.image(index), name=f"row {index}")
            return image, self.rows.label(index), index
        except ValueError as error:
            raise BadImageError(str(error)) from error

    def _readable_image(self, index: int) -> tuple[torch.Tensor, int, int]:
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            if self.is_bad[candidate]:
                continue
            try:
                return self._read(candidate)
            except BadImageError as error:
                self._record(candidate, str(error))
        raise BadImageError(f"none of the {len(self)} training images can be read; the log is {self.bad_images_log}")

    def _record(self, index: int, reason: str) -> None:
        self.is_bad[index] = 1
        log_bad_image(reason, self.bad_images_log)
        stop_if_too_many(self.num_bad_images, self.max_bad_images, self.bad_images_log, reason)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """64 well-mixed bits of (seed, epoch, index): the finalizer of splitmix64 after each number."""
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
def generators_kept() -> Iterator[None]:
    """Leave the global CPU generators as they were before."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_generator = mtrand.get_bit_generator()
    mtrand.set_bit_generator(_NUMPY_GENERATOR)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
