"""Datasets on the Hub, from a server on this machine or a replaced client, and folders of Arrow files."""

import io
import json
import os
import subprocess
import sys

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from helpers.hub_server import hub
from helpers.images import ROWS, png
from livt_hf.data import (
    class_counts,
    load_long_tailed,
)

CODE = """
import datasets, json, sys
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.streamed_evaluation import evaluation_splits
from livt_hf.data.streaming import load_stream
for how, source in (word.split(":") for word in sys.argv[2:]):
    try:
        if how == "stream":
            stream = load_stream(source, counts_folder=sys.argv[1])
            held = {split: class_counts(rows) for split, rows in evaluation_splits(source, stream).items()}
            print(json.dumps({"counts": stream.class_counts, "rows": len(list(stream.images)), "held": held}))
        else:
            splits = load_long_tailed(source)
            first = len(splits["train"][0]["image"]["bytes"])
            print(json.dumps({"counts": class_counts(splits), "splits": list(splits), "first": first}))
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
"""


def parquet(labels: list[int]) -> bytes:
    features = Features({"picture": Image(), "kind": ClassLabel(names=["zebra", "ant"])})
    images = [{"bytes": png((10 * number, 0, 0)), "path": None} for number in range(len(labels))]
    data = io.BytesIO()
    Dataset.from_dict({"picture": images, "kind": labels}, features=features).to_parquet(data)
    return data.getvalue()


FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00000-of-00001.parquet": parquet([0, 0, 0, 1]),
    "data/test-00000-of-00001.parquet": parquet([1, 0]),
}


def load(endpoint: str, folder, *words: str, **environment: str) -> list[dict]:
    """The outputs of a new process, as the client reads its endpoint at import; a word is "load:id" or "stream:id"."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    command = [sys.executable, "-c", CODE, str(folder), *words]
    run = subprocess.run(command, capture_output=True, text=True, env={**inherited, **settings}, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_hub_datasets_are_read_by_their_ids_and_offline_from_the_cache(tmp_path):
    """A missing one is named, on the Hub and offline."""
    ids = ("animals", "streamed", "new")
    with hub({f"datasets/org/{name}": FILES for name in ids}) as (endpoint, requests):
        words = ("load:org/plants", "load:org/animals", "stream:org/streamed")
        missing, loaded, streamed = load(endpoint, tmp_path, *words)
        for found in (loaded, streamed):
            assert found["counts"] == {"zebra": 3, "ant": 1}
        assert (loaded["splits"], loaded["first"]) == (["train", "test"], len(png((0, 0, 0))))
        assert streamed["rows"] == 4
        assert streamed["held"] == {"test": {"zebra": 1, "ant": 1}}
        for name in ("animals", "streamed"):
            assert any(f"/datasets/org/{name}/resolve/" in request for request in requests)
        assert missing["error"].startswith("dataset: 'org/plants' cannot be loaded from the Hub (")
        assert missing["error"].endswith("; check the id")

        requests.clear()
        new, again = load(endpoint, tmp_path, "load:org/new", "load:org/animals", HF_HUB_OFFLINE="1")
        assert new["error"].endswith("; it is not in the local cache and HF_HUB_OFFLINE is set")
        assert again == loaded
        assert requests == []


def saved_columns():
    features = Features({"picture": Image(), "kind": ClassLabel(names=["cat", "ant"]), "id": Value("int64")})
    return Dataset.from_dict({"picture": ROWS, "kind": [1, 0, 1], "id": [1, 2, 3]}, features=features)


def test_a_hub_dataset_is_opened_by_its_id(monkeypatch):
    asked = []

    def load_dataset(hub_id):
        asked.append(hub_id)
        rows = saved_columns().add_column("name", ["b", "a", "b"])
        return DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr("livt_hf.data.sources.hub.datasets.load_dataset", load_dataset)
    assert class_counts(load_long_tailed("someone/pets", imbalance_factor=2)) == {"cat": 1, "ant": 1}
    by_name = load_long_tailed("someone/pets", label_column="name")["test"]
    assert class_counts(by_name) == {"a": 1, "b": 2}
    assert by_name[0] == {"image": ROWS[0], "label": 1}
    assert asked == ["someone/pets"] * 2
    with pytest.raises(ValueError, match="^dataset: 'cifar10-lt' has 10 classes, but uoft-cs/cifar10 has 2; check"):
        load_long_tailed("cifar10-lt", label_column="kind")


def test_offline_the_hub_id_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("huggingface_hub.constants", "datasets.config"):  # which read the variable when imported
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    message = (
        r"^dataset: 'uoft-cs/cifar10' cannot be loaded from the Hub \(.*\); it is not in the local cache and "
        "HF_HUB_OFFLINE is set; or name a folder with the images as --data_dir$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_long_tailed("cifar10-lt")
    assert "\n" not in str(caught.value)


def test_a_folder_saved_by_datasets_stays_on_disk(tmp_path):
    DatasetDict({"train": saved_columns(), "valid": saved_columns()}).save_to_disk(tmp_path / "both")
    splits = load_long_tailed(tmp_path / "both")
    assert list(splits) == ["train", "validation"]
    assert class_counts(splits) == {"cat": 1, "ant": 2}
    assert splits["train"][1] == {"image": ROWS[1], "label": 0}
    assert splits["train"].cache_files  # memory-mapped, not copied
    saved_columns().save_to_disk(tmp_path / "single")
    assert list(load_long_tailed(tmp_path / "single")) == ["train"]


def test_arrow_files_without_metadata_are_opened_in_place(tmp_path):
    """Named as in the cache of `datasets`, without its JSON files."""
    saved_columns().save_to_disk(tmp_path / "saved")
    (source,) = (tmp_path / "saved").glob("*.arrow")
    for name in ("parquet-train-00000-of-00002.arrow", "parquet-train-00001-of-00002.arrow", "parquet-test.arrow"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).write_bytes(source.read_bytes())
    splits = load_long_tailed(tmp_path / "bare")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "test": 3}
    assert class_counts(splits) == {"cat": 2, "ant": 4}
    assert splits["train"][1] == {"image": ROWS[1], "label": 0}
    assert splits["train"].cache_files
    (tmp_path / "bare" / "parquet-train-00001-of-00002.arrow").write_bytes(b"no arrow")
    with pytest.raises(ValueError, match="cannot be read as Arrow files"):
        load_long_tailed(tmp_path / "bare")


def test_splits_under_other_names_are_found_and_unused_ones_named(monkeypatch, caplog):
    splits = DatasetDict(dict.fromkeys(("Training", "val", "dev", "test", "unlabeled"), saved_columns()))
    monkeypatch.setattr("livt_hf.data.sources.hub.datasets.load_dataset", lambda hub_id: splits)
    assert list(load_long_tailed("someone/pets")) == ["train", "validation", "test"]
    assert caplog.messages == ["someone/pets: not used: split dev, split unlabeled"]
    del splits["Training"]
    with pytest.raises(ValueError, match="^someone/pets: no train split beside val, dev, test, unlabeled; a training"):
        load_long_tailed("someone/pets")
