"""Streamed datasets: each image once per epoch over all processes and workers, counts cached, bad images skipped."""

import gc
import itertools
import json
from collections import Counter
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image

from helpers.images import png
from livt_hf.data import (
    BadImageError,
    EvalTransform,
    PretrainTransform,
    TrainingBatches,
    load_long_tailed,
    streaming,
)
from livt_hf.data.streaming import StreamedSamples, load_stream


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` sleeps 5 seconds whenever it closes a stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    yield
    gc.collect()


def write_shards(folder, label_feature, labels, shards=4, bad=()):
    """Images identified by their red value."""
    folder.mkdir(exist_ok=True)
    features = Features({"image": Image(), "label": label_feature})
    rows = [
        {"image": {"bytes": b"bad" if number in bad else png((number, 0, 0), (8, 8)), "path": None}, "label": label}
        for number, label in enumerate(labels)
    ]
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards], schema=features.arrow_schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return folder


LABELS = [number % 3 for number in range(40)]
NAMES = ClassLabel(names=["b", "a", "c"])


def numbers(batches):
    return [int(pixels[0, 0, 0]) for batch in batches for pixels in batch["pixel_values"]]


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 0), (1, 2), (2, 1)])
def test_processes_and_workers_share_the_images_of_an_epoch(tmp_path, num_processes, num_workers):
    stream = load_stream(write_shards(tmp_path / "set", NAMES, LABELS), counts_folder=tmp_path)
    assert stream.class_counts == {"b": 14, "a": 13, "c": 13}
    assert len(stream) == 40
    seen = Counter()
    for rank in range(num_processes):
        samples = StreamedSamples(stream, EvalTransform(8, 1.0), num_processes, rank, shuffle_buffer=10)
        loader = samples.loader(TrainingBatches(samples.num_images, batch_size=5), num_workers)
        batches = list(itertools.islice(loader, 8 // num_processes))
        seen.update(numbers(batches))
        for batch in batches:
            assert batch["labels"].tolist() == [number % 3 for number in numbers([batch])]
    assert seen == Counter(range(40))


def test_the_order_changes_with_epoch_seed_and_start(tmp_path):
    stream = load_stream(write_shards(tmp_path / "set", NAMES, LABELS), counts_folder=tmp_path)

    def order(seed, start_step=0):
        samples = StreamedSamples(stream, EvalTransform(8, 1.0), shuffle_buffer=10, seed=seed)
        return numbers(itertools.islice(samples.loader(TrainingBatches(40, 40, start_step=start_step), 0), 2))

    whole = order(seed=1)
    assert sorted(whole[:40]) == sorted(whole[40:]) == list(range(40))
    assert whole[:40] != whole[40:]
    assert whole == order(seed=1)
    assert whole != order(seed=2)
    assert whole != order(seed=1, start_step=7)


def test_augmentations_do_not_repeat_between_processes(tmp_path):
    stream = load_stream(write_shards(tmp_path / "set", NAMES, LABELS), counts_folder=tmp_path)
    state = torch.get_rng_state()
    noise = [next(iter(StreamedSamples(stream, PretrainTransform(8, 4), 2, rank)))["noise"].tolist() for rank in (0, 1)]
    assert noise[0] != noise[1]
    assert torch.equal(state, torch.get_rng_state())


def test_labels_are_counted_once_and_cached(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "set", NAMES, LABELS)
    counts = load_stream(folder, counts_folder=tmp_path / "counts").class_counts
    (file,) = (tmp_path / "counts").iterdir()
    assert json.loads(file.read_text()) == counts
    monkeypatch.setattr("livt_hf.data.streaming.Counter", None)
    assert load_stream(folder, counts_folder=tmp_path / "counts").class_counts == counts
    given = load_stream(folder, class_counts={"a": 1, "b": 2, "c": 3}, counts_folder=tmp_path / "none")
    assert list(given.class_counts.items()) == [("b", 2), ("a", 1), ("c", 3)]  # in label order
    with pytest.raises(ValueError, match="and class_counts differ; only in .*: 'c'; only in class_counts: 'd'"):
        load_stream(folder, class_counts={"a": 1, "b": 2, "d": 3})


def test_labels_are_recounted_if_the_files_change(tmp_path, monkeypatch):
    def counts():
        return load_stream("set", counts_folder=tmp_path / "counts").class_counts

    for project, labels in (("one", [0, 1, 2]), ("two", [2, 2, 1])):  # the same name in two project folders
        (tmp_path / project).mkdir()
        write_shards(tmp_path / project / "set", NAMES, labels, shards=1)
    monkeypatch.chdir(tmp_path / "one")
    assert counts() == {"b": 1, "a": 1, "c": 1}
    monkeypatch.chdir(tmp_path / "two")
    assert counts() == {"b": 0, "a": 1, "c": 2}
    write_shards(tmp_path / "two" / "set", NAMES, [2, 2, 1, 0], shards=1)
    assert counts() == {"b": 1, "a": 1, "c": 2}


def test_labels_are_recounted_for_another_revision_on_the_hub(tmp_path, monkeypatch):
    hub, open_folder = SimpleNamespace(sha="1"), streaming._open
    monkeypatch.setattr(streaming, "HfApi", lambda: SimpleNamespace(dataset_info=lambda hub_id, timeout: hub))
    monkeypatch.setattr(streaming, "_open", lambda hub_id: open_folder(tmp_path / "set"))

    def images_of_b(labels):
        write_shards(tmp_path / "set", NAMES, labels)
        return load_stream("someone/pets", counts_folder=tmp_path / "counts").class_counts["b"]

    assert images_of_b(LABELS) == 14
    assert images_of_b(LABELS[:30]) == 14  # the same revision is not read again
    hub.sha = "2"
    assert images_of_b(LABELS[:30]) == 10


@pytest.mark.parametrize(
    ("feature", "labels", "counts"),
    [
        (datasets.Value("string"), ["y", "x", "y", "z"], {"x": 1, "y": 2, "z": 1}),
        (datasets.Value("int64"), [10, 9, 10, 2], {"2": 1, "9": 1, "10": 2}),
        (datasets.Value("bool"), [True, False, True, True], {"false": 1, "true": 3}),
    ],
)
def test_labels_without_class_names(tmp_path, feature, labels, counts):
    folder = write_shards(tmp_path / "set", feature, labels, shards=1)
    stream = load_stream(folder, label_column="label", counts_folder=tmp_path)
    assert list(stream.class_counts.items()) == list(counts.items())
    batch = next(iter(StreamedSamples(stream, EvalTransform(8, 1.0)).loader(TrainingBatches(4, 4), 0)))
    names = list(counts)
    assert [names[label] for label in batch["labels"]] == [str(labels[number]).lower() for number in numbers([batch])]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (load_stream, "has rows without a label"),
        (load_long_tailed, "label None of train row 2 is not one of the 2 classes"),
    ],
)
def test_nan_is_a_missing_label_not_a_class(tmp_path, load, message):
    folder = write_shards(tmp_path / "set", datasets.Value("float64"), [0.0, 1.0, float("nan"), 1.0], shards=1)
    with pytest.raises(ValueError, match=message):
        load(folder, label_column="label")


def test_bad_images_are_skipped_counted_once_and_limited(tmp_path):
    stream = load_stream(write_shards(tmp_path / "set", NAMES, LABELS, bad=(3, 8)), counts_folder=tmp_path)
    log = tmp_path / "bad_images.log"
    samples = StreamedSamples(stream, EvalTransform(8, 1.0), bad_images_log=log)
    seen = numbers(itertools.islice(samples.loader(TrainingBatches(40, 19), num_workers=1), 4))
    assert Counter(seen) == Counter({number: 2 for number in range(40) if number not in (3, 8)})
    assert int(samples.num_bad_images) == 2
    assert len(log.read_text().splitlines()) == 2
    strict = StreamedSamples(stream, EvalTransform(8, 1.0), max_bad_images=1)
    with pytest.raises(
        BadImageError, match="^max_bad_images: 2 training images cannot be read, more than the limit of 1; the last"
    ):
        list(itertools.islice(strict.loader(TrainingBatches(40, 19), num_workers=1), 4))


def test_sources_that_cannot_be_streamed_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^dataset: .* has no train-.*parquet \(no files\); only Parquet folders can"):
        load_stream(tmp_path)
    with pytest.raises(ValueError, match="^dataset: 'digits' is neither a folder nor a Hub id"):
        load_stream("digits")
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"^dataset: 'someone/pets' cannot be streamed from the Hub \(.*\); HF_HUB_OFFLINE is set$"
    ):
        load_stream("someone/pets")
