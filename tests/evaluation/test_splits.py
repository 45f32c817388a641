"""What the splits of a dataset lack: counted by the model's classes, and one sentence each."""

import pytest
from datasets import ClassLabel, Dataset, Features

from livt_hf.data.table import leave_out
from livt_hf.evaluation.splits import log_coverage, split_coverage

COUNTS = {"cat": 50, "dog": 1, "emu": 1, "fox": 7}


def labeled(names, labels):
    return Dataset.from_dict({"label": labels}, features=Features({"label": ClassLabel(names=names)}))


@pytest.fixture
def coverage(capsys):  # of whose output the warning is a part
    test = leave_out(labeled(["fox", "cat", "dog", "emu"], [1, 1, 0]), {"yak": 1, "gnu": 1200}, "photos/test")
    validation = labeled(list(COUNTS), [0, 1, 2, 3])
    return split_coverage({"train": labeled(list(COUNTS), [0]), "validation": validation, "test": test}, COUNTS)


def test_what_is_lacking_is_named_by_the_classes_of_the_model(coverage):
    assert coverage == {
        "classes": 4,
        "without_images": {"test": ["dog", "emu"]},
        "single_training_image": ["dog", "emu"],
        "left_out": {"test": {"yak": 1, "gnu": 1200}},
    }


def test_each_thing_is_one_line_of_the_log(coverage, capsys):
    reported = "photos/test: 1,201 images left out, because no training image has their class: yak (1), gnu (1,200);"
    assert capsys.readouterr().err.startswith(reported)
    log_coverage(coverage)
    assert capsys.readouterr().out == (
        "Classes without test images: 2 of 4 (dog, emu). Means over the classes of that split leave them out.\n"
        "Classes with a single training image: 2 of 4 (dog, emu).\n"
    )


def test_a_complete_dataset_is_not_talked_about(capsys):
    splits = {"test": labeled(list(COUNTS), [0, 1, 2, 3])}
    log_coverage(split_coverage(splits, {**COUNTS, "dog": 2, "emu": 2}))
    assert capsys.readouterr().out == ""
