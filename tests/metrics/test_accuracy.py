"""Accuracy overall and by group: the official implementation's numbers and hand-computed ones."""

import subprocess
import sys
import time

import numpy as np
import pytest

from livt_hf.metrics import calibration_error, describe_groups, long_tail_accuracy


def test_accuracy_equals_the_official_one(reference):
    result = long_tail_accuracy(reference["labels"], reference["predictions"], list(reference["class_counts"]))
    assert result["accuracy"] == pytest.approx(100 * float(reference["accuracy"]), abs=1e-9)
    for group in ("many", "medium", "few"):
        # The official code rounds each class to two decimals before it averages.
        assert result[group] == pytest.approx(float(reference[group]), abs=0.01)
        rounded = [round(result["per_class"][name], 2) for name in _classes_of(group, reference["class_counts"])]
        assert np.mean(rounded) == pytest.approx(float(reference[group]), abs=1e-9)


def _classes_of(group, counts):
    member = {"many": counts > 100, "few": counts < 20, "medium": (counts >= 20) & (counts <= 100)}[group]
    return [str(label) for label in np.flatnonzero(member)]


def test_group_accuracy_is_the_mean_over_classes_with_test_images():
    # a: 1 of 4 right, b: 1 of 1, c: no test images, d: 0 of 1
    labels, predictions = [0, 0, 0, 0, 1, 3], [0, 1, 1, 1, 1, 0]
    counts = {"a": 500, "b": 101, "c": 200, "d": 20}
    result = long_tail_accuracy(labels, predictions, counts)
    assert result["accuracy"] == pytest.approx(100 * 2 / 6)
    assert result["many"] == pytest.approx((25 + 100) / 2)
    assert result["medium"] == 0.0
    assert result["few"] is None
    assert result["per_class"] == {"a": 25.0, "b": 100.0, "c": None, "d": 0.0}
    assert result["groups"] == {
        "definition": {"many": 100, "few": 20, "by": "count"},
        "sizes": {"many": 3, "medium": 1, "few": 0},
        "measured": {"many": 2, "medium": 1, "few": 0},
    }


def test_a_group_whose_classes_have_no_test_images_is_none():
    result = long_tail_accuracy([0], [0], {"a": 500, "b": 5})
    assert (result["many"], result["few"]) == (100.0, None)
    assert (result["groups"]["sizes"]["few"], result["groups"]["measured"]["few"]) == (1, 0)


def test_groups_by_rank():
    result = long_tail_accuracy([0, 1, 2, 3], [0, 1, 0, 0], [9, 7, 5, 3], groups={"many": 2, "few": 1, "by": "rank"})
    assert (result["many"], result["medium"], result["few"]) == (100.0, 0.0, 0.0)
    assert describe_groups(result["groups"]["definition"])["many"] == "the 2 largest classes"


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "labels: empty"),
        ([0, 1], [0], "lengths differ: 2 labels, 1 predictions"),
        ([0, 2], [0, 0], "labels: value 2 at position 1 is out of range; 2 classes have labels 0 to 1"),
        ([0, 1], [0, -1], "predictions: value -1 at position 1"),
        ([0, 1], [[0.1, 0.9], [0.5, 0.5]], "predictions: shape"),
        ([0.0, 1.0], [0, 1], "labels: float64 values"),
    ],
)
def test_bad_input_is_named(labels, predictions, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        long_tail_accuracy(labels, predictions, {"a": 3, "b": 1})


def test_the_metrics_of_8142_classes_take_less_than_a_second():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 1000, 8142)
    labels, predictions = np.repeat(np.arange(8142), 3), rng.integers(0, 8142, 24426)
    start = time.process_time()
    long_tail_accuracy(labels, predictions, counts)
    calibration_error(labels, predictions, rng.random(24426))
    assert time.process_time() - start < 1.0


def test_functions_import_neither_torch_nor_evaluate():
    code = "import sys, livt_hf.metrics; print([m for m in ('torch', 'evaluate', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
