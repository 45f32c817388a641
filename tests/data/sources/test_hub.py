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
import json, sys
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.streamed_evaluation import evaluation_splits
from livt_hf.data.streaming import load_stream
source = sys.argv[1]
try:
    if sys.argv[2] == "stream":
        stream = load_stream(source, counts_folder=sys.argv[3])
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


def load(endpoint: str, source: str, how: str, folder, **environment: str) -> dict:
    """The output of a new process, because the client reads its endpoint at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    command = [sys.executable, "-c", CODE, source, how, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env={**inherited, **settings}, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["load", "stream"])
def test_a_hub_dataset_is_read_by_its_id(tmp_path, how):
    with hub({"datasets/org/animals": FILES}) as (endpoint, requests):
        found = load(endpoint, "org/animals", how, tmp_path)
    assert found["counts"] == {"zebra": 3, "ant": 1}
    if how == "load":
        assert (found["splits"], found["first"]) == (["train", "test"], len(png((0, 0, 0))))
    else:
        assert found["rows"] == 4
        assert found["held"] == {"test": {"zebra": 1, "ant": 1}}
    assert any("/datasets/org/animals/resolve/" in request for request in requests)


def test_a_missing_hub_dataset_is_named(tmp_path):
    with hub({"datasets/org/animals": FILES}) as (endpoint, _):
        error = load(endpoint, "org/plants", "load", tmp_path)["error"]
    assert error.startswith("dataset: 'org/plants' cannot be loaded from the Hub (")
    assert error.endswith("; check the id")


def test_offline_the_cache_is_used_and_a_missing_dataset_is_named(tmp_path):
    with hub({"datasets/org/animals": FILES}) as (endpoint, requests):
        error = load(endpoint, "org/animals", "load", tmp_path, HF_HUB_OFFLINE="1")["error"]
        assert error.endswith("; it is not in the local cache and HF_HUB_OFFLINE is set")
        assert requests == []
        load(endpoint, "org/animals", "load", tmp_path)
        requests.clear()
        again = load(endpoint, "org/animals", "load", tmp_path, HF_HUB_OFFLINE="1")
        assert again["counts"] == {"zebra": 3, "ant": 1}
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
