"""`livt embed`: a Parquet table that pandas and pyarrow read, of datasets and of image files; nothing half written."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.cli import the_error
from helpers.tiny_models import save_tiny
from livt_hf.cli import main
from livt_hf.data import load_long_tailed
from livt_hf.data.transforms import image_processor
from livt_hf.evaluation.features import load_feature_model, split_features


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny("vit", tmp_path_factory.mktemp("model"))
    image_processor(8, 0.875, [0.5] * 3, [0.2] * 3).save_pretrained(folder)
    return folder


def run(model, *words) -> int:
    return main(["embed", "--model", str(model), "--num_workers", "0", *map(str, words)])


def test_a_dataset_becomes_a_table_of_files_labels_and_vectors(data, model, tmp_path, capsys):
    output = tmp_path / "features.parquet"
    assert run(model, "--dataset", data, "--output", output) == 0
    assert capsys.readouterr().out.endswith(f"\n10 images embedded: {output}\n")
    table = pq.read_table(output)
    assert table.schema.names == ["file", "split", "label", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert table["split"].to_pylist() == ["train"] * 8 + ["test"] * 2
    assert table["label"].to_pylist() == ["ant"] * 5 + ["bee"] * 3 + ["ant", "bee"]
    assert table["file"].to_pylist()[0].endswith("train/ant/0.jpg")
    expected = split_features(*_loaded(model, load_long_tailed(data)["train"]), cache=False)
    np.testing.assert_allclose(np.stack(table["vector"].to_pylist()[:8]), expected, atol=1e-6)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(output)
    np.testing.assert_allclose(np.stack(frame.loc[frame.label == "bee", "vector"])[:3], expected[5:], atol=1e-6)


def _loaded(model, split):
    encoder, processor = load_feature_model(model)
    return encoder, split, processor


def test_one_split(data, model, tmp_path):
    output = tmp_path / "features.parquet"
    assert run(model, "--dataset", data, "--split", "test", "--output", output) == 0
    assert set(pq.read_table(output)["split"].to_pylist()) == {"test"}


def test_image_files_have_no_labels_and_an_unreadable_one_no_vector(data, model, tmp_path, capsys):
    images, output = tmp_path / "images", tmp_path / "features.parquet"
    shutil.copytree(data / "train" / "ant", images)
    (images / "1.jpg").write_bytes(b"no image")
    assert run(model, "--images", images, "--output", output) == 1
    out = capsys.readouterr().out
    assert "4 images embedded" in out
    assert f"cannot be read (no vector): 1; see {output}.unreadable.log" in out
    table = pq.read_table(output)
    assert table["file"].to_pylist() == [str(images / f"{index}.jpg") for index in range(5)]
    assert [vector is None for vector in table["vector"].to_pylist()] == [False, True, False, False, False]
    assert table["label"].null_count == table["split"].null_count == 5
    assert "1.jpg" in (tmp_path / "features.parquet.unreadable.log").read_text()
    readable = load_long_tailed(data)["train"].select([0, 2, 3, 4])
    expected = split_features(*_loaded(model, readable), cache=False)
    np.testing.assert_allclose(np.stack(table["vector"].drop_null().to_pylist()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "f.parquet"], "dataset: a dataset or images, none was given; name one with --dataset"),
        (
            ["--images", "a.jpg", "--dataset", "x", "--output", "f.parquet"],
            "dataset: a dataset or images, both were given",
        ),
        (
            ["--images", "a.jpg", "--split", "test", "--output", "f.parquet"],
            "split: image files have no splits; leave it out",
        ),
        (["--dataset", "x", "--output", "f.csv"], "output: 'f.csv' must end in .parquet"),
        (["--dataset", "x", "--output", "none/f.parquet"], "output: 'none/f.parquet' cannot be written; name a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(model, capsys, words, message):
    assert the_error(capsys, run(model, *words)).startswith(message)


def test_a_failure_leaves_the_old_file(data, model, tmp_path, monkeypatch):
    output = tmp_path / "features.parquet"
    output.write_bytes(b"old")
    monkeypatch.setattr("livt_hf.evaluation.embed.ROWS_AT_ONCE", 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("livt_hf.evaluation.embed.publish_file", full)
    assert run(model, "--dataset", data, "--output", output) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["features.parquet"]
    assert output.read_bytes() == b"old"
