"""Validation and test split of a stream: the same as without streaming, and within bounds."""

import gc

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, Value

from helpers.images import ROWS
from livt_hf.data import load_long_tailed, streaming
from livt_hf.data.sources import parquet
from livt_hf.data.streamed_evaluation import evaluation_splits
from livt_hf.data.streaming import load_stream

NAMED, NUMBERS, WORDS = ClassLabel(names=["b", "a"]), Value("int64"), Value("string")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` sleeps 5 seconds whenever it closes a stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    yield
    gc.collect()


def rows(feature, labels):
    features = Features({"image": Image(), "label": feature})
    return Dataset.from_dict({"image": ROWS[: len(labels)], "label": labels}, features)


def write(folder, **splits):
    for split, dataset in splits.items():
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


KINDS = [(NAMED, [0, 1, 1], [1, 0]), (NUMBERS, [7, 3, 3], [3, 7]), (WORDS, ["y", "x", "x"], ["x", "y"])]


def same_rows(one, other):
    return one.features["label"].names == other.features["label"].names and one.to_list() == other.to_list()


@pytest.mark.parametrize(("feature", "train", "test"), KINDS)
def test_a_folder_gives_the_splits_that_loading_gives(tmp_path, caplog, feature, train, test):
    folder = write(tmp_path / "set", train=rows(feature, train), test=rows(feature, test), dev=rows(feature, train))
    found = evaluation_splits(folder, load_stream(folder, counts_folder=tmp_path))
    loaded = load_long_tailed(folder)
    assert set(found) == {"validation", "test"}
    assert all(same_rows(found[split], loaded[split]) for split in found)
    assert f"{folder}: test split of 2 images, read from its files for evaluation" in caplog.messages


@pytest.mark.parametrize(("feature", "train", "test"), KINDS)
def test_the_hub_gives_them_in_memory(tmp_path, monkeypatch, caplog, feature, train, test):
    splits = {"train": rows(feature, train), "validation": rows(feature, train), "test": rows(feature, test)}
    streams = IterableDatasetDict({split: each.to_iterable_dataset() for split, each in splits.items()})
    monkeypatch.setattr(streaming.datasets, "load_dataset", lambda hub_id, streaming: streams)
    stream = load_stream("org/pets", class_counts=None, counts_folder=tmp_path)
    found = evaluation_splits("org/pets", stream)
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    loaded = load_long_tailed(tmp_path / "saved")
    assert all(same_rows(found[split], loaded[split]) for split in ("validation", "test"))
    assert any("test split of 2 images (0.0 MiB) kept in memory for evaluation" in line for line in caplog.messages)

    monkeypatch.setattr(parquet, "MAX_BYTES_IN_MEMORY", 2 * len(ROWS[0]["bytes"]))
    assert set(evaluation_splits("org/pets", stream)) == {"test"}
    assert "the validation split has more than" in caplog.messages[-2]


def test_a_split_without_labels_is_ignored(tmp_path):
    folder = write(tmp_path / "set", train=rows(NAMED, [0, 1]), test=rows(NAMED, [-1, -1]))
    with pytest.warns(UserWarning, match="the test split has no labels and is ignored"):
        assert evaluation_splits(folder, load_stream(folder, counts_folder=tmp_path)) == {}


def test_labels_of_another_kind_are_named(tmp_path):
    folder = write(tmp_path / "set", train=rows(NUMBERS, [1, 2]), test=rows(NUMBERS, [1, 3]))
    with pytest.raises(ValueError, match=r"label 3 of test row 1 is not one of the 2 classes \(1, 2; 1 such rows\)"):
        evaluation_splits(folder, load_stream(folder, counts_folder=tmp_path))
    lists = write(tmp_path / "lists", train=rows([NUMBERS], [[1], [1, 2]]))
    with pytest.raises(ValueError, match="^label_column: 'label' of .* contains lists; several labels per image"):
        load_stream(lists, counts_folder=tmp_path)
