"""Samples are a function of (seed, epoch, index); unreadable images are replaced, counted and named."""

import io
import multiprocessing
import multiprocessing.reduction
import pickle
import random
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from helpers.images import encoded, photo
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
from livt_hf.data.table import image_column, image_dataset


def with_bad_images(digits, bad_rows, count=20):
    """The first images of the digits with some replaced by broken bytes."""
    contents = [image["bytes"] for image in digits[:count]["image"]]
    for row in bad_rows:
        contents[row] = b"broken"
    labels = list(range(count))
    return image_dataset(image_column(contents=contents), labels, [str(label) for label in labels], "bad")


def test_sample_seeds_do_not_collide_or_correlate():
    seeds = [sample_seed(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(1000)]
    assert len(set(seeds)) == len(seeds)
    bits = np.unpackbits(np.array(seeds, dtype=np.uint64).view(np.uint8)).reshape(len(seeds), 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(len(seeds))
    assert sample_seed(0, 1, 2) != sample_seed(0, 2, 1)


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


def test_the_state_of_the_global_generators_is_preserved(digits):
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
    """A worker that is not forked gets a pickled copy, in which only the flags of bad images are shared."""
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


def test_small_images_are_decoded_once(monkeypatch):
    digits = load_long_tailed("digits")["train"]
    kept = ImageDataset(digits, PretrainTransform(8, 4), seed=3)
    monkeypatch.setattr("livt_hf.data.dataset.MAX_BYTES", 0)
    fresh = ImageDataset(digits, PretrainTransform(8, 4), seed=3)
    assert kept.decoded is not None
    assert fresh.decoded is None
    for key in ((0, 0), (1, 330), (2, 17)):
        ours, theirs = kept[key], fresh[key]
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in ours)
    monkeypatch.setattr("livt_hf.data.dataset.decode_image", None)
    kept[(0, 5)]


def test_images_of_other_sizes_and_bad_ones_are_not_kept(photos, tmp_path):
    assert ImageDataset(photos["train"], EvalTransform(8)).decoded is None  # the first is large
    for index, size in enumerate([(8, 8), (8, 8), (9, 8)]):
        photo(*size, seed=index).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "rows.csv").write_text("".join(f"{index}.png,a\n" for index in range(4)))
    dataset = ImageDataset(load_long_tailed(tmp_path / "rows.csv")["train"], EvalTransform(8, crop_ratio=1.0))
    assert dataset.decoded.present.tolist() == [True, True, False, False]
    assert [dataset[index]["index"] for index in range(3)] == [0, 1, 2]
    with pytest.raises(BadImageError, match=r"3\.png: the file is empty"):
        dataset[3]


def gif():
    buffer = io.BytesIO()
    frames = [photo(40, 50, seed) for seed in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def rotated():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(40, 50, 3), "JPEG", exif=exif)


def bomb():
    """A PNG whose header declares 20,000 x 20,000 pixels."""

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    idat = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(idat))
        + b"IDAT"
        + idat
        + struct.pack(">I", zlib.crc32(b"IDAT" + idat))
    )


GOOD = {
    "wrong_extension.png": lambda: encoded(photo(40, 50, 4), "JPEG"),
    "cmyk.jpg": lambda: encoded(photo(40, 50, 5).convert("CMYK"), "JPEG"),
    "deep.png": lambda: encoded(PIL.Image.fromarray(np.full((40, 50), 40_000, np.uint16)), "PNG"),
    "palette.png": lambda: encoded(photo(40, 50, 6).quantize(64), "PNG", transparency=3),
    "animated.gif": gif,
    "rotated.jpg": rotated,
    "one.png": lambda: encoded(photo(1, 1, 7), "PNG"),
    "huge.jpg": lambda: encoded(PIL.Image.new("L", (9_000, 60)), "JPEG"),
}


BAD = {
    "truncated.jpg": lambda: encoded(photo(400, 500, 8), "JPEG")[:2000],
    "empty.jpg": lambda: b"",
    "page.jpg": lambda: b"<!doctype html>",
    "bomb.png": bomb,
}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dirty_files_are_handled_or_replaced_counted_and_named(tmp_path, num_workers):
    folder = tmp_path / "dirty" / "a"
    folder.mkdir(parents=True)
    for name, make in {**GOOD, **BAD}.items():
        (folder / name).write_bytes(make())
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()  # a folder is not an image, whatever its name
    train = load_long_tailed(tmp_path / "dirty")["train"]
    assert len(train) == len(GOOD) + len(BAD) + 1

    log = tmp_path / "bad_images.log"
    dataset = ImageDataset(train, PretrainTransform(16, 4), bad_images_log=log)
    batches = list(training_loader(dataset, TrainingBatches(13, 13, stop_step=2), num_workers))
    assert dataset.num_bad_images == len(BAD) + 1
    assert sorted(line.split(": ")[0].rsplit("/", 1)[1] for line in log.read_text().splitlines()) == sorted(
        [*BAD, "dangling.jpg"]
    )
    paths = [row["image"]["path"].rsplit("/", 1)[1] for row in train]
    assert {paths[index] for batch in batches for index in batch["index"].tolist()} == set(GOOD)
    again = ImageDataset(train, PretrainTransform(16, 4))
    for batch, other in zip(batches, training_loader(again, TrainingBatches(13, 13, stop_step=2), 0), strict=True):
        assert torch.equal(batch["pixel_values"], other["pixel_values"])

    strict = ImageDataset(train, PretrainTransform(16, 4), max_bad_images=4, bad_images_log=log)
    with pytest.raises(
        BadImageError, match="^max_bad_images: 5 training images cannot be read, more than the limit of 4; "
    ):
        list(training_loader(strict, TrainingBatches(13, 13, stop_step=2), num_workers))
