"""Validation and test images taken from the training split: which ones, how many, the same in every command."""

import zlib

import numpy as np
import pytest

from livt_hf.cli import main
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.holdout import held_out_rows

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture
def photos(tmp_path):
    for name, number in {"cat": 30, "dog": 10, "lynx": 3, "emu": 2, "owl": 1}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(number):
            (tmp_path / "photos" / name / f"{index:02}.jpg").touch()
    return tmp_path / "photos"


def paths_of(splits, split):
    return [image["path"] for image in splits[split]["image"]]


def test_each_class_gives_its_share_and_keeps_an_image(photos, caplog):
    splits = load_long_tailed(photos, val_fraction=0.1, test_fraction=0.25)
    assert {split: class_counts(rows) for split, rows in splits.items()} == {
        "train": {"cat": 19, "dog": 6, "emu": 1, "lynx": 1, "owl": 1},
        "validation": {"cat": 3, "dog": 1, "emu": 0, "lynx": 1, "owl": 0},
        "test": {"cat": 8, "dog": 3, "emu": 1, "lynx": 1, "owl": 0},
    }
    assert caplog.messages == [
        "1 of 5 classes is too small for a test image: owl",
        "2 of 5 classes are too small for a validation image: emu, owl",
        "train 28, validation 5, test 13 images after the division",
    ]
    found = [path for split in splits for path in paths_of(splits, split)]
    assert sorted(found) == paths_of(load_long_tailed(photos), "train")
    for split in splits:
        assert paths_of(splits, split) == sorted(paths_of(splits, split))  # the order of the source


def test_the_rule_is_the_documented_one():
    shuffled = np.random.RandomState(zlib.crc32(b"cat")).permutation(20).tolist()
    rows = held_out_rows(np.zeros(20, dtype=np.int64), ["cat"], {"test": 0.125, "validation": 0.1})
    assert rows["test"].tolist() == sorted(shuffled[:3])  # 2.5 is rounded up
    assert rows["validation"].tolist() == sorted(shuffled[3:5])
    assert rows["train"].tolist() == sorted(shuffled[5:])


def test_no_other_option_changes_the_division(photos):
    both = load_long_tailed(photos, val_fraction=0.1, test_fraction=0.25)
    tail = load_long_tailed(photos, test_fraction=0.25, imbalance_factor=10, seed=7)
    assert paths_of(tail, "test") == paths_of(both, "test")
    assert set(paths_of(tail, "train")).isdisjoint(paths_of(both, "test"))
    assert class_counts(tail["train"])["cat"] == 22  # the tail is cut from what is left
    (photos / "ant").mkdir()
    (photos / "ant" / "1.jpg").touch()
    assert paths_of(load_long_tailed(photos, test_fraction=0.25), "test") == paths_of(both, "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"val_fraction": 0.6, "test_fraction": 0.5},
            "^val_fraction: together with --test_fraction, it leaves no",
        ),
        ({"val_fraction": 1.5}, "^val_fraction: 1.5 is out of range; it must be above 0 and below 1"),
        ({"test_fraction": 0.0}, "^test_fraction: 0.0 is out of range"),
    ],
)
def test_fractions_that_leave_nothing_are_refused(photos, options, message):
    with pytest.raises(ValueError, match=message):
        load_long_tailed(photos, **options)


def test_a_split_that_is_there_is_not_replaced():
    with pytest.raises(ValueError, match="^val_fraction: digits has a validation split of 140 images; leave it out"):
        load_long_tailed("digits", val_fraction=0.1)


def test_commands_have_the_options(photos, tmp_path, capsys):
    words = ["dataset", "inspect", "--dataset", photos, "--val_fraction", 0.1, "--output_dir", tmp_path]
    assert main([str(word) for word in words]) == 0
    assert "train 40, validation 6 images" in capsys.readouterr().out
