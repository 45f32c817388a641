"""Deterministic loading: the order is a function of (seed, epoch), the augmentation of (seed, epoch, sample index).

Neither depends on the number of workers or training processes, so a run can be resumed at any step, even with a
different number of processes for the same global batch.
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ..reporting.provenance import available_cores
from .batch_ops import erased_pixels
from .decoding import BadImageError

ORDER_STREAM = 1  # distinguishes this RNG stream from others with the same seed
BALANCED_STREAM = 4


class TrainingBatches:
    """Batch sampler: keys of the micro-batches of one process, continuous across epochs.

    The order of an epoch is a permutation drawn from (seed, epoch). The global batch of a step is its next slice of
    ``batch_size * accumulation_steps * num_processes`` keys, cut into contiguous blocks of ``batch_size``: block
    ``a * num_processes + r`` is micro-batch ``a`` of process ``r``. The last incomplete global batch is dropped.

    Args:
        num_samples: number of training images.
        batch_size: images per micro-batch and process.
        start_step, stop_step: range of optimizer steps; None never stops.
        labels: (N,) class labels, for class-balanced sampling (`class_balanced_keys`); None samples uniformly.

    Yields:
        Lists of (epoch, index).

    Raises:
        ValueError: a global batch larger than the number of images.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulation_steps: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        labels: np.ndarray | None = None,
    ):
        self.num_samples = num_samples
        self.labels = labels
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.start_step = start_step
        self.stop_step = stop_step
        self.global_batch_size = batch_size * accumulation_steps * num_processes
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"batch_size: a global batch of {self.global_batch_size} images ({batch_size} x {accumulation_steps} "
                f"accumulation steps x {num_processes} processes) is larger than the {num_samples} training images; "
                "lower it"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last incomplete global batch is dropped."""
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        if self.stop_step is None:
            raise TypeError("an endless TrainingBatches has no length")
        return max(self.stop_step - self.start_step, 0) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, order_epoch = self.start_step, -1
        order: list[tuple[int, int]] = []
        while self.stop_step is None or step < self.stop_step:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, self._keys(epoch)
            first = step_in_epoch * self.global_batch_size
            for micro_batch in range(self.accumulation_steps):
                start = first + (micro_batch * self.num_processes + self.process_index) * self.batch_size
                yield order[start : start + self.batch_size]
            step += 1

    def _keys(self, epoch: int) -> list[tuple[int, int]]:
        if self.labels is not None:
            return class_balanced_keys(self.labels, self.seed, epoch)
        return [(epoch, index) for index in epoch_order(self.num_samples, self.seed, epoch).tolist()]


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (N,) of an epoch. Uses RandomState, whose stream is the same in every numpy version."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch, ORDER_STREAM]))
    return np.random.RandomState(bits).permutation(num_samples)  # noqa: NPY002


def class_balanced_keys(labels: np.ndarray, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Keys of an epoch in which each class appears N / C times, rounded up or down; a function of (seed, epoch).

    Each class cycles through its images, reshuffled every cycle. The cycle's number is encoded in the epoch of the
    keys, so that repetitions are augmented differently.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch, BALANCED_STREAM]))
    random = np.random.RandomState(bits)  # noqa: NPY002
    classes, first, counts = np.unique(np.sort(labels), return_index=True, return_counts=True)
    by_class = np.argsort(labels, kind="stable")
    slots = random.permutation(np.resize(random.permutation(len(classes)), len(labels)))  # (N,) class of each place
    places = np.split(np.argsort(slots, kind="stable"), np.cumsum(np.bincount(slots, minlength=len(classes)))[:-1])
    keys = [(0, 0)] * len(labels)
    for class_places, start, count in zip(places, first, counts, strict=True):
        images = by_class[start : start + count]
        for place, number in enumerate(class_places.tolist()):
            if place % count == 0:
                images = random.permutation(images)
            keys[number] = (epoch + (place // int(count) << 32), int(images[place % count]))
    return keys


def collate(samples: list[dict] | dict[str, Any]) -> dict[str, Any]:
    """Stack samples that are not yet a batch; pixels (B, 3, S, S) stay channels last in memory: a plain copy.

    ``num_erased`` is the number of pixels in the boxes to erase, so that `erase` need not read it from a device.
    """
    batch = samples if isinstance(samples, dict) else _stacked(samples)
    if "erase_box" in batch:
        batch["num_erased"] = erased_pixels(batch["erase_box"])
    return batch


def _stacked(samples: list[dict]) -> dict[str, Any]:
    last = [{**sample, "pixel_values": sample["pixel_values"].movedim(-3, -1)} for sample in samples]
    batch = default_collate(last)
    batch["pixel_values"] = batch["pixel_values"].movedim(-1, -3)  # (B, S, S, 3) -> (B, 3, S, S); views come after B
    return batch


def on_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Generator[dict[str, Any]]:
    """Batches with their tensors on ``device``.

    To a GPU the next batch is copied on a stream of its own, from pinned memory, while the current one is trained on.
    """
    if device.type != "cuda":
        yield from (_moved(batch, device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)
    ahead: deque[tuple[dict[str, Any], torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            ahead.append((_moved(batch, device), stream.record_event()))
        if len(ahead) == 2:
            yield _arrived(*ahead.popleft())
    yield from (_arrived(*last) for last in ahead)


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if torch.is_tensor(value)}
    return {**batch, **moved}


def _arrived(batch: dict[str, Any], copied: torch.cuda.Event) -> dict[str, Any]:
    """The batch, for use on the current stream, which waits for the copy; the host does not."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in batch.values():
        if torch.is_tensor(value):
            value.record_stream(stream)  # otherwise its memory could be reused too early
    return batch


class ImageLoader(DataLoader):
    """A DataLoader that re-raises a worker's BadImageError without the worker's traceback."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        try:
            yield from super().__iter__()
            return
        except BadImageError as error:
            message = str(error)
            traceback.clear_frames(error.__traceback__)  # they keep the workers alive, each of which takes 5 s to end
        raise BadImageError(message)


def ignore_stop_signals(worker: int) -> None:
    """Keep a worker alive when a scheduler signals all processes of a job: training still finishes its step."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))  # seconds until it exits


def limit_workers(num_workers: int) -> int:
    """At most one worker per available core: torch warns of more, and they are slower."""
    return min(num_workers, available_cores())


def training_loader(
    dataset: Dataset, batches: TrainingBatches, num_workers: int, pin_memory: bool = False
) -> ImageLoader:
    """Micro-batches in the order of ``batches``: dicts with "pixel_values" uint8 (B, 3, S, S), "labels" (B,), ..."""
    return ImageLoader(
        dataset,
        batch_sampler=batches,
        num_workers=limit_workers(num_workers),
        pin_memory=pin_memory,
        collate_fn=collate,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # otherwise starting the workers draws from the global generator
    )


def evaluation_loader(dataset: Dataset, batch_size: int, num_workers: int, pin_memory: bool = False) -> ImageLoader:
    """All images once, in order, in the format of `training_loader`; the last batch may be smaller."""
    return ImageLoader(
        dataset,
        batch_size=batch_size,
        num_workers=limit_workers(num_workers),
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),
    )
