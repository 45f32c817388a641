"""A batch equals its samples, bit for bit: for decoded sets, for files, with bad images and images of other sizes."""

import pytest
import torch

from helpers.images import encoded, photo
from livt_hf.data import (
    EvalTransform,
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    evaluation_loader,
    training_loader,
)
from livt_hf.data.loader import collate
from livt_hf.data.rand_augment import OPERATIONS
from livt_hf.data.table import image_column, image_dataset

TRANSFORMS = {
    "pretraining": lambda size: PretrainTransform(size, 16),
    "fine-tuning": lambda size: FinetuneTransform(size, random_erasing=0.5),
    "other operations": lambda size: FinetuneTransform(size, rand_augment="rand-m5-n3-mstd1.0"),
    "no operations": lambda size: FinetuneTransform(size, rand_augment=None, horizontal_flip=0.0),
}


def rows(sizes, bad=()):
    """A dataset of photos of these sizes, with labels of their own; the bad ones are broken bytes."""
    contents = [encoded(photo(*size, seed), "PNG") for seed, size in enumerate(sizes)]
    for index in bad:
        contents[index] = b"broken"
    labels = [(7 * index) % 11 for index in range(len(sizes))]
    return image_dataset(image_column(contents=contents), labels, [str(label) for label in range(11)], "rows")


def assert_equal(batch, expected):
    counted = {"num_erased"}  # when collated
    assert batch.keys() - counted == expected.keys() - counted
    for name in expected.keys() - counted:
        values = expected[name]
        assert batch[name].dtype == values.dtype
        assert torch.equal(batch[name], values), name
    assert batch["pixel_values"].stride() == expected["pixel_values"].stride()


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(("shape", "size"), [((32, 32), 32), ((28, 40), 16), ((80, 90), 48)])
def test_batches_equal_their_samples(name, shape, size):
    """The last shape is too large to be kept decoded."""
    dataset = ImageDataset(rows([shape] * 40), TRANSFORMS[name](size), seed=3)
    assert (dataset.decoded is None) == (shape == (80, 90))
    epochs = 3 if dataset.decoded is None else 10
    keys = [(epoch + (epoch << 32), index) for epoch in range(epochs) for index in range(40)]
    batch = dataset.__getitems__(keys)
    assert isinstance(batch, dict)
    assert_equal(batch, collate([dataset[key] for key in keys]))
    assert batch["index"].tolist() == [index for _, index in keys]
    assert batch["labels"].tolist() == [(7 * index) % 11 for _, index in keys]
    assert_equal(dataset.__getitems__(keys[5:6]), collate([dataset[keys[5]]]))
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))
    shuffled = dataset.__getitems__([keys[place] for place in order])
    assert_equal(
        shuffled,
        {key: values[order] for key, values in batch.items() if key != "pixel_values"}
        | {"pixel_values": batch["pixel_values"].permute(0, 2, 3, 1)[order].permute(0, 3, 1, 2)},
    )


@pytest.mark.parametrize("name", ["pretraining", "fine-tuning"])
def test_bad_images_and_images_of_other_sizes(name, tmp_path):
    """They are handled as in single samples, within batches of images that are kept decoded."""
    sizes = [(32, 32)] * 30
    sizes[4], sizes[9], sizes[29] = (30, 32), (200, 100), (32, 31)
    bad = [7, 8, 28]  # replaced by 9, 9 and 29
    logs = [tmp_path / "batches.log", tmp_path / "samples.log"]
    ours, samples = (ImageDataset(rows(sizes, bad), TRANSFORMS[name](32), bad_images_log=log) for log in logs)
    assert ours.decoded is not None
    assert ours.decoded.present.sum() == 24
    for epoch in range(3):
        keys = [(epoch, index) for index in range(30)]
        batch = ours.__getitems__(keys)
        assert_equal(batch, collate([samples[key] for key in keys]))
        expected = [{7: 9, 8: 9, 28: 29}.get(index, index) for index in range(30)]
        assert batch["index"].tolist() == expected
        assert batch["labels"].tolist() == [(7 * index) % 11 for index in expected]
    assert ours.num_bad_images == 3
    assert logs[0].read_text() == logs[1].read_text() != ""


def test_an_operation_that_is_not_known_is_left_to_single_samples(monkeypatch):
    known = ImageDataset(rows([(32, 32)] * 20), FinetuneTransform(32))
    monkeypatch.delitem(OPERATIONS, "Equalize")
    unknown = ImageDataset(rows([(32, 32)] * 20), FinetuneTransform(32))
    keys = [(epoch, index) for epoch in range(5) for index in range(20)]
    samples = unknown.__getitems__(keys)
    assert isinstance(samples, list)
    assert_equal(known.__getitems__(keys), collate(samples))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_yield_the_batches_in_order(num_workers):
    dataset = ImageDataset(rows([(32, 32)] * 20), FinetuneTransform(32), seed=1)
    batches = TrainingBatches(20, 6, stop_step=6, seed=1)
    loaded = list(training_loader(dataset, batches, num_workers))
    assert len(loaded) == 6
    for keys, batch in zip(batches, loaded, strict=True):
        assert_equal(batch, collate([dataset[key] for key in keys]))


def test_evaluation_is_that_of_single_images():
    dataset = ImageDataset(rows([(32, 32)] * 11), EvalTransform(32))
    batches = list(evaluation_loader(dataset, 4, num_workers=0))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(11))
    for start, batch in zip((0, 4, 8), batches, strict=True):
        assert_equal(batch, collate([dataset[index] for index in range(start, min(start + 4, 11))]))


def test_a_training_transform_without_epochs_is_epoch_0():
    dataset = ImageDataset(rows([(32, 32)] * 6), PretrainTransform(16, 4))
    assert_equal(dataset.__getitems__(list(range(6))), dataset.__getitems__([(0, index) for index in range(6)]))
