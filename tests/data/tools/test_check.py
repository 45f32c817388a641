"""Unreadable images and images in several splits are found."""

import pytest

from livt_hf.cli import main
from livt_hf.data.tools.check import check_dataset


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
    assert "train: 8 images, 1 cannot be read, 1 duplicate" in text
    assert "1 image of test is also in train, which inflates the accuracy" in text


def test_a_list_of_bad_images_is_written_and_named_only_if_there_are_some(photos, tmp_path, capsys):
    words = [
        "dataset",
        "check",
        "--dataset",
        str(tmp_path / "photos"),
        "--output_dir",
        str(tmp_path),
        "--num_workers",
        "0",
    ]
    assert main(words) == 0
    log = tmp_path / "bad_images.log"
    assert not log.exists()
    assert "unreadable images:" not in capsys.readouterr().out
    good = (tmp_path / "photos/train/large/1.jpg").read_bytes()
    (tmp_path / "photos/train/large/1.jpg").write_bytes(b"")
    assert main(words) == 1
    assert f"unreadable images: {log}" in capsys.readouterr().out
    (tmp_path / "photos/train/large/1.jpg").write_bytes(good)
    assert main(words) == 0
    assert log.read_text() == ""
    assert f"{log} of an earlier check is now empty" in capsys.readouterr().out
