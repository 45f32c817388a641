"""A dataset of the Hub, read by the real `datasets` and `huggingface_hub` from a server on this machine."""

import io
import json
import os
import subprocess
import sys

import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from helpers.hub_server import hub

CODE = """
import json, sys
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.streaming import load_stream
source = sys.argv[1]
try:
    if sys.argv[2] == "stream":
        stream = load_stream(source, counts_folder=sys.argv[3])
        print(json.dumps({"counts": stream.class_counts, "rows": len(list(stream.images))}))
    else:
        splits = load_long_tailed(source)
        first = len(splits["train"][0]["image"]["bytes"])
        print(json.dumps({"counts": class_counts(splits), "splits": list(splits), "first": first}))
except ValueError as error:
    print(json.dumps({"error": str(error)}))
"""


def png(level: int) -> bytes:
    data = io.BytesIO()
    PILImage.new("RGB", (8, 8), (level, 0, 0)).save(data, "PNG")
    return data.getvalue()


def parquet(labels: list[int]) -> bytes:
    features = Features({"picture": Image(), "kind": ClassLabel(names=["zebra", "ant"])})
    images = [{"bytes": png(10 * number), "path": None} for number in range(len(labels))]
    data = io.BytesIO()
    Dataset.from_dict({"picture": images, "kind": labels}, features=features).to_parquet(data)
    return data.getvalue()


FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00000-of-00001.parquet": parquet([0, 0, 0, 1]),
    "data/test-00000-of-00001.parquet": parquet([1, 0]),
}


def load(endpoint: str, source: str, how: str, folder, **environment: str) -> dict:
    """What a fresh process reads, because the client takes its endpoint at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    command = [sys.executable, "-c", CODE, source, how, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env={**inherited, **settings}, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["load", "stream"])
def test_a_hub_data_set_is_read_by_its_id(tmp_path, how):
    with hub({"datasets/org/animals": FILES}) as (endpoint, requests):
        found = load(endpoint, "org/animals", how, tmp_path)
    assert found["counts"] == {"zebra": 3, "ant": 1}
    if how == "load":
        assert (found["splits"], found["first"]) == (["train", "test"], len(png(0)))
    else:
        assert found["rows"] == 4
    assert any("/datasets/org/animals/resolve/" in request for request in requests)


def test_what_is_not_there_is_named(tmp_path):
    with hub({"datasets/org/animals": FILES}) as (endpoint, _):
        error = load(endpoint, "org/plants", "load", tmp_path)["error"]
    assert error.startswith("dataset: 'org/plants' cannot be loaded from the Hub (")
    assert error.endswith("; check the id")


def test_offline_it_says_what_is_missing_and_uses_what_was_fetched(tmp_path):
    with hub({"datasets/org/animals": FILES}) as (endpoint, requests):
        error = load(endpoint, "org/animals", "load", tmp_path, HF_HUB_OFFLINE="1")["error"]
        assert error.endswith("; it is not in the local cache and HF_HUB_OFFLINE is set")
        assert requests == []
        load(endpoint, "org/animals", "load", tmp_path)
        requests.clear()
        again = load(endpoint, "org/animals", "load", tmp_path, HF_HUB_OFFLINE="1")
        assert again["counts"] == {"zebra": 3, "ant": 1}
        assert requests == []
