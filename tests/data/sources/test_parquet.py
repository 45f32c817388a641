"""Parquet folders in the Hub's layout, in memory or read image by image."""

import json

import pytest
import torch
from datasets import ClassLabel, Image, Value

from helpers.images import ROWS, write_parquet
from helpers.paths import SHARED
from livt_hf.data import (
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    class_counts,
    decode_image,
    decoding,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.sources import parquet as parquet_source
from livt_hf.data.tools.prepare import prepare_dataset

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


@pytest.mark.parametrize("place", ["", "data", "plain_text"])
def test_a_parquet_folder_in_the_hub_layout(tmp_path, place):
    features = {"img": Image(), "label": ClassLabel(names=["cat", "ant"]), "id": Value("string")}
    for shard, labels in enumerate([[1, 0, 1], [0, 1, 1]]):
        columns = {"img": ROWS, "label": labels, "id": ["x", "y", "z"]}
        write_parquet(tmp_path / place / f"train-0000{shard}-of-00002.parquet", columns, features)
    write_parquet(tmp_path / place / "test-00000-of-00001.parquet", columns, features)
    before = sorted(tmp_path.rglob("*"))
    splits = load_long_tailed(tmp_path)
    assert class_counts(splits) == {"cat": 2, "ant": 4}  # the schema's order, not the alphabet's
    assert class_counts(splits["test"]) == {"cat": 1, "ant": 2}
    assert splits["train"][4] == {"image": ROWS[1], "label": 1}
    assert sorted(tmp_path.rglob("*")) == before


def test_broken_and_incomplete_parquet_folders_are_named(tmp_path):
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"no train-\*.parquet beside test-0.parquet"):
        load_long_tailed(tmp_path)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train-0\.parquet: not a readable Parquet file"):
        load_long_tailed(tmp_path)


def test_missing_parquet_files_of_a_split_are_noticed(tmp_path):
    features = {"image": Image(), "label": ClassLabel(names=["a", "b"])}
    write_parquet(tmp_path / "train-00000-of-00002.parquet", {"image": ROWS, "label": [0, 1, 0]}, features)
    with pytest.raises(ValueError, match="contains 1 of the 2 files that train-00000-of-00002.parquet belongs to"):
        load_long_tailed(tmp_path)


@needs_shared
def test_the_real_parquet_folders_have_the_published_counts():
    for name in ("grocery", "grocery_fine"):
        known = json.loads((SHARED / f"data/class_counts/{name}.json").read_text())
        column = "fine_label" if name == "grocery_fine" else None
        counts = class_counts(load_long_tailed(SHARED / "data/grocery", label_column=column))
        assert counts == dict(zip(known["class_names"], known["class_counts"], strict=True))
    cifar = load_long_tailed(SHARED / "data/cifar10_jpeg", imbalance_factor=100)
    assert list(class_counts(cifar).values()) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_a_parquet_folder_that_does_not_fit_in_memory_is_read_image_by_image(photos, tmp_path, monkeypatch):
    prepare_dataset(photos, tmp_path / "out", shorter_side=30, num_workers=0)
    in_memory = load_long_tailed(tmp_path / "out")
    monkeypatch.setattr(parquet_source, "MAX_BYTES_IN_MEMORY", 0)
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

    decoding._open.cache_clear()
    decoding._row_group.cache_clear()
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet#image/0: no such file"):
        decode_image(everything[0]["image"])


def test_large_row_groups_cause_a_warning(photos, tmp_path, monkeypatch):
    prepare_dataset(photos, tmp_path / "out", num_workers=0)
    monkeypatch.setattr(parquet_source, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(parquet_source, "SLOW_ROW_GROUP", 100)
    with pytest.warns(UserWarning, match="rewrite the dataset once with `livt dataset prepare`"):
        load_long_tailed(tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        (["0.parquet", "1.parquet"], {"train": 6}),
        (["data/photos.parquet"], {"train": 3}),
        (["Train_0.parquet", "train_1.parquet", "dev.parquet"], {"train": 6, "validation": 3}),
        (["training-0.parquet", "evaluation-0.parquet", "notes.parquet"], {"train": 3, "test": 3}),
        (["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"], {"train": 6, "test": 3}),
        (["default/train/0000.parquet", "default/val/0000.parquet"], {"train": 3, "validation": 3}),
    ],
)
def test_parquet_files_of_other_names(tmp_path, files, sizes):
    for file in files:
        write_parquet(tmp_path / file, {"image": ROWS, "label": [0, 1, 0]}, {"image": Image(), "label": Value("int8")})
    assert {split: len(rows) for split, rows in load_long_tailed(tmp_path).items()} == sizes
    assert len(load_long_tailed(tmp_path / files[0])["train"]) == 3  # one file as the dataset


def test_parquet_files_beside_images_are_not_the_dataset(tmp_path):
    write_parquet(
        tmp_path / "notes.parquet", {"image": ROWS, "label": [0, 1, 0]}, {"image": Image(), "label": Value("int8")}
    )
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(ROWS[0]["bytes"])
    assert class_counts(load_long_tailed(tmp_path)) == {"cat": 1, "dog": 1}
