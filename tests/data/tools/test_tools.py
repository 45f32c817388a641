"""Preparing, checking and inspecting datasets; images that lie in Parquet files or are kept decoded; dirty files."""

import io
import json

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Image

from livt_hf.data import (
    BadImageError,
    EvalTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    class_counts,
    decode_image,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.sources import parquet as parquet_folder
from livt_hf.data.tools import prepare as prepare_module
from livt_hf.data.tools.check import check_dataset
from livt_hf.data.tools.inspect import inspect_dataset
from livt_hf.data.tools.prepare import prepare_dataset


def photo(height, width, seed):
    random = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Two classes: 5 large JPEGs and 3 small PNGs in training, one of each in test."""
    for split, (large, small) in {"train": (5, 3), "test": (1, 1)}.items():
        for index in range(large):
            file = tmp_path / "photos" / split / "large" / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(60, 80 if index else 90, seed=index + 10 * (split == "test")).save(file, quality=95)
        for index in range(small):
            file = tmp_path / "photos" / split / "small" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(20, 16, seed=100 + index + 10 * (split == "test")).save(file)
    return load_long_tailed(tmp_path / "photos")


# Preparing


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepared_data_are_the_same_images_smaller(photos, tmp_path, num_workers):
    summary = prepare_dataset(photos, tmp_path / "out", shorter_side=30, num_workers=num_workers)
    prepared = load_long_tailed(tmp_path / "out")
    assert {split: class_counts(rows) for split, rows in prepared.items()} == {
        split: class_counts(rows) for split, rows in photos.items()
    }
    for original, small in zip(photos["train"], prepared["train"], strict=True):
        before, after = decode_image(original["image"]), decode_image(small["image"])
        if small["label"] == 0:
            assert after.shape == (3, 30, 45 if before.shape[2] == 90 else 40)
            expected = torch.nn.functional.interpolate(before[None], after.shape[1:], mode="bicubic", antialias=True)[0]
            expected = PIL.Image.fromarray(expected.permute(1, 2, 0).contiguous().numpy())
            assert small["image"]["bytes"] == encoded(expected, "JPEG", quality=85)
        else:
            assert torch.equal(before, after)  # not larger than wanted: the bytes are kept
    assert (summary.images, summary.images_written, summary.bad_images) == (10, 10, [])
    assert summary.bytes_before == sum(file.stat().st_size for file in (tmp_path / "photos").rglob("*.*"))
    assert "10 images; 0 left out" in str(summary)
    assert pq.ParquetFile(tmp_path / "out/train-00000-of-00001.parquet").metadata.row_group(0).num_rows <= 8


def test_an_interrupted_preparation_continues(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "IMAGES_PER_SHARD", 3)
    prepare_dataset(photos, tmp_path / "whole", shorter_side=30, num_workers=0)
    files = sorted(file.name for file in (tmp_path / "whole").glob("*.parquet"))
    assert files == [
        *(f"test-0000{i}-of-00001.parquet" for i in range(1)),
        *(f"train-0000{i}-of-00003.parquet" for i in range(3)),
    ]
    prepare_dataset(photos, tmp_path / "part", shorter_side=30, num_workers=0)
    (tmp_path / "part" / files[2]).rename(tmp_path / "part" / files[2].replace(".parquet", ".unfinished"))
    times = {file: (tmp_path / "part" / file).stat().st_mtime_ns for file in files if file != files[2]}
    summary = prepare_dataset(photos, tmp_path / "part", shorter_side=30, num_workers=0)
    assert (summary.images, summary.images_written) == (10, 3)
    for file in files:
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert times == {file: (tmp_path / "part" / file).stat().st_mtime_ns for file in times}
    with pytest.raises(
        ValueError, match="^output_dir: .* was prepared from other data or with other options; name a new folder"
    ):
        prepare_dataset(photos, tmp_path / "part", shorter_side=31, num_workers=0)


def test_preparation_leaves_bad_images_out_up_to_a_limit(photos, tmp_path):
    for name in ("1.jpg", "3.jpg"):
        (tmp_path / "photos/train/large" / name).write_bytes(b"broken")
    summary = prepare_dataset(photos, tmp_path / "out", shorter_side=30, num_workers=0)
    assert class_counts(load_long_tailed(tmp_path / "out")) == {"large": 3, "small": 3}
    log = (tmp_path / "out/bad_images.log").read_text().splitlines()
    assert log == summary.bad_images == [f"{tmp_path}/photos/train/large/{index}.jpg: not an image" for index in (1, 3)]
    with pytest.raises(ValueError, match="^max_bad_images: 2 images cannot be read, more than the limit of 1; see "):
        prepare_dataset(photos, tmp_path / "strict", shorter_side=30, num_workers=0, max_bad_images=1)


def test_bad_preparations_are_named(photos, tmp_path):
    with pytest.raises(ValueError, match="^shorter_side: 0 must be between 1 and 65535"):
        prepare_dataset(photos, tmp_path / "out", shorter_side=0)
    with pytest.raises(ValueError, match="^output_dir: .*photos' is not empty; name a new folder"):
        prepare_dataset(photos, tmp_path / "photos")


# Images that stay in Parquet files


def test_a_parquet_folder_that_does_not_fit_in_memory_is_read_image_by_image(photos, tmp_path, monkeypatch):
    prepare_dataset(photos, tmp_path / "out", shorter_side=30, num_workers=0)
    in_memory = load_long_tailed(tmp_path / "out")
    monkeypatch.setattr(parquet_folder, "MAX_BYTES_IN_MEMORY", 0)
    in_files = load_long_tailed(tmp_path / "out", imbalance_factor=2)["train"]
    assert in_files[0]["image"]["bytes"] is None
    assert in_files[0]["image"]["path"].startswith(f"{tmp_path}/out/train-00000-of-00001.parquet#image/")
    by_bytes = {row["image"]["bytes"]: row["label"] for row in in_memory["train"]}
    for row in in_files:
        rows = [data for data, label in by_bytes.items() if label == row["label"]]
        assert any(torch.equal(decode_image(row["image"]), decode_image(data)) for data in rows)
    everything = load_long_tailed(tmp_path / "out")["train"]
    for ours, theirs in zip(everything, in_memory["train"], strict=True):
        assert torch.equal(decode_image(ours["image"]), decode_image(theirs["image"]))
    loader = training_loader(ImageDataset(everything, PretrainTransform(8, 1)), TrainingBatches(8, 4, stop_step=4), 2)
    assert sum(len(batch["labels"]) for batch in loader) == 16
    (tmp_path / "out/train-00000-of-00001.parquet").rename(tmp_path / "gone.parquet")
    from livt_hf.data import decoding

    decoding._open.cache_clear()
    decoding._row_group.cache_clear()
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet#image/0: no such file"):
        decode_image(everything[0]["image"])


def test_large_row_groups_are_warned_of(photos, tmp_path, monkeypatch):
    prepare_dataset(photos, tmp_path / "out", num_workers=0)
    monkeypatch.setattr(parquet_folder, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(parquet_folder, "SLOW_ROW_GROUP", 100)
    with pytest.warns(UserWarning, match="rewrite the dataset once with `livt dataset prepare`"):
        load_long_tailed(tmp_path / "out")


# Images kept decoded


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


# Checking


@pytest.mark.parametrize("num_workers", [0, 2])
def test_check_finds_bad_images_and_images_in_two_splits(photos, tmp_path, num_workers):
    folder = tmp_path / "photos"
    (folder / "train/large/1.jpg").write_bytes((folder / "train/large/0.jpg").read_bytes()[:300])
    (folder / "train/small/2.png").write_bytes((folder / "train/small/0.png").read_bytes())
    (folder / "test/small/0.png").write_bytes((folder / "train/small/0.png").read_bytes())
    found = check_dataset(photos, num_workers, bad_images_log=tmp_path / "bad.log")
    assert found.images == {"train": 8, "test": 2}
    (bad,) = found.bad_images["train"]
    assert bad.startswith(f"{folder}/train/large/1.jpg: cannot be decoded (")
    assert (tmp_path / "bad.log").read_text() == bad + "\n"
    assert found.repeated == {"train": 1, "test": 0}
    assert found.shared == [("train", f"{folder}/train/small/0.png", "test", f"{folder}/test/small/0.png")]
    assert found.sizes["train"].tolist() == [[60, 90], *[[60, 80]] * 3, *[[20, 16]] * 3]
    text = str(found)
    assert "train: 8 images, 1 cannot be read, 1 are duplicates" in text
    assert "1 images of test are also in train, which inflates the accuracy" in text


# Inspecting


def test_inspect_prints_the_numbers_and_draws(photos, tmp_path):
    (tmp_path / "photos/train/large/4.jpg").write_bytes(b"")
    found = inspect_dataset(photos, tmp_path / "pictures/data.png", groups={"many": 4, "few": 4})
    assert str(found).splitlines() == [
        "train 8, test 2 images, 2 classes",
        "imbalance factor 1.66667 (5 to 3 training images per class)",
        "classes by shot group: many 1 (more than 4 training images), medium 0 (4 to 4 training images), few 1 "
        "(fewer than 4 training images)",
        "sizes of 7 images: height 20 to 60 (median 60), width 16 to 90 (median 80)",
        "1 of the sampled images cannot be read; `livt dataset check` lists all",
        "  large        5",
        "  small        3",
    ]
    with PIL.Image.open(tmp_path / "pictures/data.png") as picture:
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((47, 111, 222), (214, 69, 93)):  # many and few
        assert (colors == color).all(1).sum() > 5000


def test_the_class_list_of_a_large_set_is_shortened(tmp_path):
    digits = load_long_tailed("digits")
    found = inspect_dataset(digits, tmp_path / "digits.png", groups={"many": 3, "few": 3, "by": "rank"})
    assert found.groups == {"many": 3, "medium": 4, "few": 3}
    assert "many 3 (the 3 largest classes), medium 4 (the classes between), few 3 (the 3 smallest)" in str(found)
    assert len(str(found).splitlines()) == 4 + 10
    found.class_counts = {str(index): 1000 - index for index in range(100)}
    assert len(str(found).splitlines()) == 4 + 17


# Everything that can be wrong with a file


def gif():
    buffer = io.BytesIO()
    frames = [photo(40, 50, seed) for seed in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rotated():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(40, 50, 3), "JPEG", exif=exif)


def bomb():
    """A PNG that claims to be 20,000 x 20,000: only its header is needed."""
    import struct
    import zlib

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


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """As root every file can be read, so the refusal is simulated."""
    from livt_hf.data import decoding

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(decoding, "read_image", refuse)
    with pytest.raises(ValueError, match=r"secret\.jpg: no permission to read it"):
        decode_image(tmp_path / "secret.jpg")


def test_prepared_files_open_with_plain_datasets(photos, tmp_path):
    """What `prepare` writes is a Hugging Face dataset: features and class names are in the schema."""
    from datasets import Features

    prepare_dataset(photos, tmp_path / "out", num_workers=0)
    schema = pq.read_schema(tmp_path / "out/train-00000-of-00001.parquet")
    features = Features.from_arrow_schema(schema)
    assert features["image"] == Image()
    assert features["label"].names == ["large", "small"]
    assert json.loads(schema.metadata[b"livt_hf"])["images"] == 8
