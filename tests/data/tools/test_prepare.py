"""Prepared datasets: the same images, smaller; interrupted runs continue; unreadable images are left out."""

import json
import os
import signal

import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, Image

from helpers.cli import the_error_after_a_bar, words
from helpers.images import encoded
from livt_hf.cli import main
from livt_hf.data import (
    class_counts,
    decode_image,
    load_long_tailed,
)
from livt_hf.data.tools import prepare as prepare_module
from livt_hf.data.tools.prepare import prepare_dataset


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepared_images_are_the_same_but_smaller(photos, tmp_path, num_workers):
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
            assert torch.equal(before, after)  # below the limit: the bytes are kept
    assert (summary.images, summary.images_written, summary.bad_images) == (10, 10, [])
    assert summary.bytes_before == sum(file.stat().st_size for file in (tmp_path / "photos").rglob("*.*"))
    assert "10 images; 0 left out" in str(summary)
    assert pq.ParquetFile(tmp_path / "out/train-00000-of-00001.parquet").metadata.row_group(0).num_rows <= 8


def test_prepared_files_open_with_plain_datasets(photos, tmp_path):
    """The files are a Hugging Face dataset: features and class names are in the schema."""

    prepare_dataset(photos, tmp_path / "out", num_workers=0)
    schema = pq.read_schema(tmp_path / "out/train-00000-of-00001.parquet")
    features = Features.from_arrow_schema(schema)
    assert features["image"] == Image()
    assert features["label"].names == ["large", "small"]
    assert json.loads(schema.metadata[b"livt_hf"])["images"] == 8


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


def test_a_process_that_dies_and_ctrl_c_are_one_line(photos, tmp_path, monkeypatch, capsys):
    argv = words("dataset", "prepare", dataset=tmp_path / "photos", output_dir=tmp_path / "out", num_workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "_shrink", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        error = the_error_after_a_bar(capsys, main(argv))
    assert error.startswith(
        "num_workers: a process that loads images was killed, most likely because the machine ran out"
    )

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "map_chunks", interrupt)
    assert main(argv) == 130
    line = "interrupted; the same command continues with the files that are missing"
    assert capsys.readouterr().err.splitlines()[-1] == line
