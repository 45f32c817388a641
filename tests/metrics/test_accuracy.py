"""Group accuracy and calibration error against the official implementation's numbers and hand-computed ones."""

import subprocess
import sys
import time

import numpy as np
import pytest

from helpers.paths import FIXTURES
from livt_hf.metrics import calibration_error, describe_groups, long_tail_accuracy, reliability_bins

FIXTURE = FIXTURES / "metrics_reference.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURE) as arrays:
        return {name: arrays[name] for name in arrays.files}


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


def test_calibration_equals_the_official_one(reference):
    result = calibration_error(reference["labels"], reference["predictions"], reference["confidences"])
    assert result["ece"] == pytest.approx(100 * float(reference["ece"]), abs=1e-9)
    assert result["mce"] == pytest.approx(100 * float(reference["mce"]), abs=1e-9)


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
    }


def test_a_group_whose_classes_have_no_test_images_is_none():
    result = long_tail_accuracy([0], [0], {"a": 500, "b": 5})
    assert (result["many"], result["few"]) == (100.0, None)
    assert result["groups"]["sizes"]["few"] == 1


def test_groups_by_rank():
    result = long_tail_accuracy([0, 1, 2, 3], [0, 1, 0, 0], [9, 7, 5, 3], groups={"many": 2, "few": 1, "by": "rank"})
    assert (result["many"], result["medium"], result["few"]) == (100.0, 0.0, 0.0)
    assert describe_groups(result["groups"]["definition"])["many"] == "the 2 largest classes"


def test_bins_hold_their_upper_edge_and_the_first_one_zero():
    bins = reliability_bins([0, 0, 0, 0], [0, 1, 0, 0], [0.0, 0.5, 0.51, 1.0], num_bins=2)
    assert [bin_["count"] for bin_ in bins] == [2, 2]
    assert (bins[0]["accuracy"], bins[0]["confidence"]) == (50.0, 25.0)
    assert (bins[1]["low"], bins[1]["high"]) == (50.0, 100.0)
    assert calibration_error([0, 0, 0, 0], [0, 1, 0, 0], [0.0, 0.5, 0.51, 1.0], 2) == pytest.approx(
        {"ece": (2 * 25 + 2 * 24.5) / 4, "mce": 25.0}
    )


def test_empty_bins_are_none_and_count_nothing():
    bins = reliability_bins([1], [1], np.float32([0.9]))
    assert [bin_["accuracy"] for bin_ in bins].count(None) == 14
    assert calibration_error([1], [1], [1.0]) == {"ece": 0.0, "mce": 0.0}


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "labels: empty"),
        ([0, 1], [0], "lengths differ: 2 labels, 1 predictions"),
        ([0, 2], [0, 0], "labels: value 2 at position 1 is no class; with 2 classes it must be 0 to 1"),
        ([0, 1], [0, -1], "predictions: value -1 at position 1"),
        ([0, 1], [[0.1, 0.9], [0.5, 0.5]], "predictions: shape"),
        ([0.0, 1.0], [0, 1], "labels: float64 values"),
    ],
)
def test_bad_input_is_named(labels, predictions, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        long_tail_accuracy(labels, predictions, {"a": 3, "b": 1})


@pytest.mark.parametrize(
    ("confidences", "message"),
    [([0.5], "lengths differ"), ([0.5, 1.5], "value 1.5 at position 1"), ([np.nan, 0.5], "value nan at position 0")],
)
def test_bad_confidences_are_named(confidences, message):
    with pytest.raises(ValueError, match=message):
        calibration_error([0, 1], [0, 1], confidences)


def test_inaturalist_size_is_instant():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 1000, 8142)
    labels, predictions = np.repeat(np.arange(8142), 3), rng.integers(0, 8142, 24426)
    start = time.process_time()
    long_tail_accuracy(labels, predictions, counts)
    calibration_error(labels, predictions, rng.random(24426))
    assert time.process_time() - start < 1.0


def test_evaluate_modules_give_the_same_numbers(reference, tmp_path):
    from livt_hf.metrics import CalibrationError, LongTailAccuracy

    labels, predictions, confidences = (reference[name] for name in ("labels", "predictions", "confidences"))
    counts = [int(count) for count in reference["class_counts"]]
    accuracy = LongTailAccuracy(cache_dir=str(tmp_path))
    for part in (slice(0, 1000), slice(1000, None)):
        accuracy.add_batch(predictions=predictions[part], references=labels[part])
    assert accuracy.compute(class_counts=counts) == long_tail_accuracy(labels, predictions, counts)
    calibration = CalibrationError(cache_dir=str(tmp_path))
    assert calibration.compute(
        predictions=predictions, references=labels, confidences=confidences, num_bins=10
    ) == calibration_error(labels, predictions, confidences, 10)


def test_evaluate_modules_combine(reference, tmp_path):
    import evaluate

    from livt_hf.metrics import CalibrationError, LongTailAccuracy

    both = evaluate.combine([LongTailAccuracy(cache_dir=str(tmp_path)), CalibrationError(cache_dir=str(tmp_path))])
    result = both.compute(
        predictions=[0, 1, 1], references=[0, 1, 0], confidences=[1.0, 1.0, 0.6], class_counts={"a": 150, "b": 5}
    )
    assert result["many"] == 50.0
    assert result["few"] == 100.0
    assert result["ece"] == pytest.approx(20.0)


def test_long_tail_accuracy_metric_asks_for_class_counts(tmp_path):
    from livt_hf.metrics import LongTailAccuracy

    with pytest.raises(ValueError, match="class_counts"):
        LongTailAccuracy(cache_dir=str(tmp_path)).compute(predictions=[0], references=[0])


def test_functions_import_neither_torch_nor_evaluate():
    code = "import sys, livt_hf.metrics; print([m for m in ('torch', 'evaluate', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
