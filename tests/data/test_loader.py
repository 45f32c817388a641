"""The order is a function of (seed, epoch), for any number of workers and processes."""

import itertools
import multiprocessing
import multiprocessing.reduction
import os
import signal

import pytest
import torch

from livt_hf.data import (
    EvalTransform,
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    evaluation_loader,
    training_loader,
)
from livt_hf.data.loader import epoch_order, limit_workers


def order_of(num_samples, num_processes, accumulation_steps, batch_size, steps, **options):
    """The keys in global order: micro-batch a of process r is block a * num_processes + r of its step."""
    per_process = [
        list(
            TrainingBatches(
                num_samples, batch_size, accumulation_steps, num_processes, process, stop_step=steps, **options
            )
        )
        for process in range(num_processes)
    ]
    return [key for micro_batches in zip(*per_process, strict=True) for batch in micro_batches for key in batch]


def test_the_order_is_the_same_for_any_number_of_processes():
    whole = order_of(50, 1, 1, 8, steps=20, seed=3)
    assert whole == order_of(50, 2, 1, 4, steps=20, seed=3)
    assert whole == order_of(50, 1, 4, 2, steps=20, seed=3)
    assert whole == order_of(50, 2, 2, 2, steps=20, seed=3)
    assert whole != order_of(50, 1, 1, 8, steps=20, seed=4)


def test_an_epoch_is_a_permutation_without_its_last_incomplete_batch():
    batches = TrainingBatches(50, 8, seed=1, stop_step=12)
    assert batches.steps_per_epoch == 6
    keys = list(batches)
    assert [len(batch) for batch in keys] == [8] * 12
    for epoch, part in enumerate((keys[:6], keys[6:])):
        indices = [index for batch in part for _, index in batch]
        assert {key_epoch for batch in part for key_epoch, _ in batch} == {epoch}
        assert indices == epoch_order(50, 1, epoch)[:48].tolist()
        assert len(set(indices)) == 48
    assert keys[:6] != keys[6:]


def test_a_run_can_start_at_any_step_and_need_not_stop():
    whole = list(TrainingBatches(50, 4, 2, stop_step=15))
    assert list(TrainingBatches(50, 4, 2, start_step=7, stop_step=15)) == whole[14:]
    assert list(itertools.islice(TrainingBatches(50, 4, 2), 30)) == whole
    assert len(TrainingBatches(50, 4, 2, start_step=7, stop_step=15)) == 16
    with pytest.raises(TypeError, match="no length"):
        len(TrainingBatches(50, 4, 2))


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(
        ValueError, match=r"^batch_size: a global batch of 64 images \(8 x 4 acc.* is larger than the 50 training"
    ):
        TrainingBatches(50, 8, 4, 2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(digits, num_workers):
    dataset = ImageDataset(digits, FinetuneTransform(16))
    batches = TrainingBatches(len(dataset), 40, start_step=6, stop_step=10)  # the end of epoch 0, the start of epoch 1
    plain = list(training_loader(dataset, batches, num_workers=0))
    in_workers = list(training_loader(dataset, batches, num_workers=num_workers))
    assert len(plain) == len(in_workers) == 4
    for one, other in zip(plain, in_workers, strict=True):
        height, width = one["erase_box"][:, 2:].unbind(dim=1)
        assert one.pop("num_erased") == other.pop("num_erased") == (height * width).sum()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert {key: (value.dtype, value.shape[0]) for key, value in plain[0].items()} == {
        "pixel_values": (torch.uint8, 40),
        "erase_box": (torch.int64, 40),
        "erase_seed": (torch.int64, 40),
        "labels": (torch.int64, 40),
        "index": (torch.int64, 40),
    }


def test_two_processes_see_the_halves_of_one_process(digits):
    dataset = ImageDataset(digits, PretrainTransform(16, 4))
    whole = next(iter(training_loader(dataset, TrainingBatches(len(dataset), 8), 0)))
    halves = [next(iter(training_loader(dataset, TrainingBatches(len(dataset), 4, 1, 2, rank), 0))) for rank in (0, 1)]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([half[key] for half in halves]))


def test_evaluation_keeps_the_order_and_the_last_batch(digits):
    dataset = ImageDataset(digits, EvalTransform(16))
    batches = list(evaluation_loader(dataset, 100, num_workers=0))
    assert [len(batch["index"]) for batch in batches] == [100, 100, 100, 31]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(331))
    assert (
        torch.cat([batch["labels"] for batch in batches]).tolist() == digits.with_format("numpy")["label"][:].tolist()
    )


def test_workers_ignore_the_stop_signals_of_a_scheduler(digits):
    """SIGTERM and SIGUSR1 go to all processes of a job; training still needs the data of its last step."""
    dataset = ImageDataset(digits, PretrainTransform(8, 1))
    batches = iter(training_loader(dataset, TrainingBatches(331, 4, stop_step=40), num_workers=1))
    next(batches)
    worker = max(multiprocessing.active_children(), key=lambda process: process.pid)  # the latest
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 39


def test_there_are_no_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert [limit_workers(number) for number in (0, 2, 3, 64)] == [0, 2, 3, 3]
