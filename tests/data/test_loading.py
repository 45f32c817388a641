"""Order from (seed, epoch), samples from (seed, epoch, index), for any number of workers and processes; bad images."""

import itertools
import multiprocessing
import multiprocessing.reduction
import os
import pickle
import random
import signal

import numpy as np
import pytest
import torch

from livt_hf.data import (
    BadImageError,
    EvalTransform,
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    evaluation_loader,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.dataset import sample_seed
from livt_hf.data.loader import epoch_order, limit_workers
from livt_hf.data.table import image_column, image_dataset


@pytest.fixture(scope="module")
def digits():
    return load_long_tailed("digits")["train"]


def with_bad_images(digits, bad_rows, count=20):
    """The first images of the digits with some replaced by broken bytes."""
    contents = [image["bytes"] for image in digits[:count]["image"]]
    for row in bad_rows:
        contents[row] = b"broken"
    labels = list(range(count))
    return image_dataset(image_column(contents=contents), labels, [str(label) for label in labels], "bad")


# Order


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


def test_sample_seeds_do_not_collide_or_correlate():
    seeds = [sample_seed(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(1000)]
    assert len(set(seeds)) == len(seeds)
    bits = np.unpackbits(np.array(seeds, dtype=np.uint64).view(np.uint8)).reshape(len(seeds), 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(len(seeds))
    assert sample_seed(0, 1, 2) != sample_seed(0, 2, 1)


# Samples


@pytest.mark.parametrize("transform", [PretrainTransform(16, 16), FinetuneTransform(16, random_erasing=0.5)])
def test_a_sample_depends_on_seed_epoch_and_index_alone(digits, transform):
    dataset = ImageDataset(digits, transform, seed=1)
    first = dataset[(2, 5)]
    dataset[(0, 7)], random.random(), torch.rand(3)
    again = dataset[(2, 5)]
    assert first["labels"] == digits[5]["label"]
    assert first["index"] == 5
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    for other in (dataset[(3, 5)], ImageDataset(digits, transform, seed=2)[(2, 5)]):
        assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_the_global_generators_are_left_as_they_were(digits):
    dataset = ImageDataset(digits, FinetuneTransform(16))

    def next_draws():
        return torch.rand(2).tolist(), random.random(), np.random.rand(2).tolist()  # noqa: NPY002

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    expected = next_draws()
    torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])  # noqa: NPY002
    dataset[(0, 1)]
    for batch in training_loader(dataset, TrainingBatches(len(dataset), 4, stop_step=2), num_workers=0):
        assert len(batch["labels"]) == 4
    assert next_draws() == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(digits, num_workers):
    dataset = ImageDataset(digits, FinetuneTransform(16))
    batches = TrainingBatches(len(dataset), 40, start_step=6, stop_step=10)  # the end of epoch 0, the start of epoch 1
    plain = list(training_loader(dataset, batches, num_workers=0))
    in_workers = list(training_loader(dataset, batches, num_workers=num_workers))
    assert len(plain) == len(in_workers) == 4
    for one, other in zip(plain, in_workers, strict=True):
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


# Bad images


def test_a_bad_image_is_replaced_by_the_next_counted_and_logged_once(digits, tmp_path):
    log = tmp_path / "run" / "bad_images.log"
    dataset = ImageDataset(with_bad_images(digits, [3, 4, 19]), PretrainTransform(8, 1), bad_images_log=log)
    for _ in range(2):
        sample = dataset[(1, 3)]
        assert (sample["index"], sample["labels"]) == (5, 5)
    assert dataset[(1, 19)]["index"] == 0  # the next after the last is the first
    assert dataset.num_bad_images == 3
    expected = ["row 3: not an image", "row 4: not an image", "row 19: not an image"]
    assert log.read_text().splitlines() == expected
    resumed = ImageDataset(with_bad_images(digits, [3, 4, 19]), PretrainTransform(8, 1), bad_images_log=log)
    assert torch.equal(resumed[(1, 3)]["pixel_values"], sample["pixel_values"])
    assert log.read_text().splitlines() == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_images_stop_with_one_line(digits, tmp_path, num_workers):
    log = tmp_path / "bad_images.log"
    rows = with_bad_images(digits, range(10, 16))
    dataset = ImageDataset(rows, PretrainTransform(8, 1), max_bad_images=5, bad_images_log=log)
    with pytest.raises(BadImageError) as caught:
        list(training_loader(dataset, TrainingBatches(20, 2, stop_step=10), num_workers))
    assert str(caught.value) == (
        f"max_bad_images: 6 training images cannot be read, more than the limit of 5; see {log}; repair them or raise "
        "the limit"
    )
    assert dataset.num_bad_images == 6  # counted by two workers together


@pytest.mark.parametrize("num_workers", [0, 1])
def test_up_to_the_limit_bad_images_are_counted_across_workers(digits, num_workers):
    dataset = ImageDataset(with_bad_images(digits, range(10, 16)), PretrainTransform(8, 1), max_bad_images=6)
    batches = list(training_loader(dataset, TrainingBatches(20, 2, stop_step=20), num_workers))
    assert len(batches) == 20
    assert dataset.num_bad_images == 6
    assert not {10, 11, 12, 13, 14, 15} & set(torch.cat([batch["index"] for batch in batches]).tolist())


def test_a_spawned_worker_shares_the_count(digits):
    """What a worker that is not forked receives: a pickled copy, in which only the marks of bad images are shared."""
    dataset = ImageDataset(with_bad_images(digits, [2, 7]), PretrainTransform(8, 1))
    copy = pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(dataset))
    assert copy[(0, 2)]["index"] == 3
    assert torch.equal(copy[(0, 5)]["pixel_values"], dataset[(0, 5)]["pixel_values"])
    assert dataset.num_bad_images == 1


def test_no_good_image_at_all_is_an_error(digits):
    dataset = ImageDataset(with_bad_images(digits, range(20)), PretrainTransform(8, 1))
    with pytest.raises(BadImageError, match="none of the 20 training images can be read"):
        dataset[(0, 0)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_in_evaluation_is_named(digits, num_workers):
    dataset = ImageDataset(with_bad_images(digits, [3]), EvalTransform(8))
    with pytest.raises(BadImageError) as caught:
        list(evaluation_loader(dataset, 5, num_workers))
    assert str(caught.value) == "row 3: not an image"


def test_workers_outlive_the_signals_of_a_scheduler(digits):
    """SIGTERM and SIGUSR1 go to all processes of a job; the training still gets the data of the step it finishes."""
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
