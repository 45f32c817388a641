"""Confusion: hand-computed cases, the official PDC formula, and 8,142 classes in bounded memory."""

import tracemalloc

import numpy as np
import pytest

from helpers.paths import FIXTURES
from livt_hf.metrics import (
    class_confusion,
    confused_pairs,
    group_confusion,
    hardest_images,
    long_tail_accuracy,
    prediction_calibration,
)

FIXTURE = FIXTURES / "metrics_reference.npz"
COUNTS = {"a": 50, "b": 40, "c": 10, "d": 2}
GROUPS = {"many": 20, "few": 5, "by": "count"}
LABELS = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
PREDICTIONS = [0, 0, 1, 2, 0, 1, 2, 0, 0, 1]


def test_prediction_calibration_is_the_official_quotient():
    with np.load(FIXTURE) as reference:
        labels, predictions, counts = (reference[name] for name in ("labels", "predictions", "class_counts"))
    # The lines of the official engine_finetune.py, in plain Python.
    test, predicted = ([np.mean(values == k) for k in range(30)] for values in (labels, predictions))
    prior = [count / counts.sum() for count in counts]
    above = sum(t * (np.log(t + 1e-6) - np.log(q + 1e-6)) for t, q in zip(test, predicted, strict=True))
    below = sum(t * (np.log(t + 1e-6) - np.log(p + 1e-6)) for t, p in zip(test, prior, strict=True))
    pdc = prediction_calibration(labels, predictions, list(counts))
    assert pdc == pytest.approx(above / below, rel=1e-9)
    assert pdc == pytest.approx(0.003797336, rel=1e-6)


def test_prediction_calibration_by_hand():
    # Test labels 1/2, 1/2; training prior 3/4, 1/4; predictions 3/4, 1/4: as far from the labels as the prior is.
    assert prediction_calibration([0, 0, 1, 1], [0, 0, 0, 1], [3, 1]) == pytest.approx(1.0)
    assert prediction_calibration([0, 0, 1, 1], [1, 0, 1, 0], [3, 1]) == 0.0
    assert prediction_calibration([0, 0, 0, 1], [0, 0, 0, 0], [3, 1]) is None  # the prior is that of the test


def test_prediction_calibration_is_undefined_where_the_test_set_differs_from_the_prior_by_chance():
    # KL(51 % || 50 %) = 2.0e-4 is below 1 / 200, the mean for 100 images: the quotient would be 125.
    labels = [0] * 51 + [1] * 49
    predictions = [0] * 62 + [1] * 38
    assert prediction_calibration(labels, predictions, [50, 50]) is None
    assert prediction_calibration(labels * 100, predictions * 100, [50, 50]) == pytest.approx(124.8, abs=0.5)


def test_class_confusion_by_hand():
    assert class_confusion(LABELS, PREDICTIONS, COUNTS) == {
        "a": {"a": 2, "b": 1, "c": 1},
        "b": {"a": 1, "b": 1},
        "c": {"a": 1, "c": 1},
        "d": {"a": 1, "b": 1},
    }


def test_groups_by_hand():
    assert group_confusion(LABELS, PREDICTIONS, COUNTS, GROUPS) == {
        "many": {"many": 5, "medium": 1, "few": 0},
        "medium": {"many": 1, "medium": 1, "few": 0},
        "few": {"many": 2, "medium": 0, "few": 0},
    }


def test_pairs_by_hand():
    pairs = confused_pairs(LABELS, PREDICTIONS, COUNTS)
    assert [(pair["true"], pair["predicted"], pair["images"], pair["share"]) for pair in pairs] == [
        ("b", "a", 1, 50.0),
        ("c", "a", 1, 50.0),
        ("d", "a", 1, 50.0),
        ("d", "b", 1, 50.0),
        ("a", "b", 1, 25.0),
        ("a", "c", 1, 25.0),
    ]
    assert confused_pairs([0, 0, 0, 1], [1, 1, 0, 0], [5, 5], limit=1) == [
        {"true": "0", "predicted": "1", "images": 2, "share": pytest.approx(200 / 3)}
    ]
    assert confused_pairs([0, 1], [0, 1], [5, 5]) == []


def test_the_hardest_images_are_the_most_confident_mistakes_of_the_tail():
    confidences = [0.5] * 8 + [0.6, 0.9]
    true = [0.5] * 8 + [0.3, 0.05]
    hardest = hardest_images(LABELS, PREDICTIONS, confidences, true, COUNTS, GROUPS)
    assert hardest == [
        {"index": 9, "group": "few", "true": "d", "predicted": "b", "confidence": 90.0, "true_probability": 5.0},
        {"index": 8, "group": "few", "true": "d", "predicted": "a", "confidence": 60.0, "true_probability": 30.0},
    ]
    assert [entry["index"] for entry in hardest_images(LABELS, PREDICTIONS, confidences, true, COUNTS, limit=1)] == [9]


def test_without_a_tested_few_shot_class_the_next_group_is_taken():
    arguments = LABELS[:8], PREDICTIONS[:8], [0.5] * 8, [0.5] * 8, COUNTS
    assert [entry["true"] for entry in hardest_images(*arguments, GROUPS)] == ["c"]
    assert {entry["group"] for entry in hardest_images(*arguments, GROUPS)} == {"medium"}


def test_means_over_classes_by_hand():
    result = long_tail_accuracy([0, 0, 1, 1, 2], [0, 1, 1, 1, 2], [9, 8, 7, 6])  # 50 %, 100 %, 100 %, not tested
    assert result["macro_accuracy"] == pytest.approx(250 / 3)
    assert result["worst_class"] == 50.0
    assert result["harmonic_mean"] == pytest.approx(3 / (1 / 50 + 1 / 100 + 1 / 100))
    assert long_tail_accuracy([0, 1], [0, 0], [9, 8])["harmonic_mean"] == 0.0


@pytest.mark.parametrize("function", [prediction_calibration, group_confusion, confused_pairs, class_confusion])
def test_bad_input_is_named(function):
    with pytest.raises(ValueError, match="predictions: value 4 at position 1 is out of range"):
        function([0, 1], [0, 4], COUNTS)


def test_8142_classes_take_no_square_matrix():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 1000, 8142)
    labels, predictions = np.repeat(np.arange(8142), 3), rng.integers(0, 8142, 24426)
    chances = rng.random((2, 24426))
    tracemalloc.start()
    pairs = confused_pairs(labels, predictions, counts)
    group_confusion(labels, predictions, counts)
    prediction_calibration(labels, predictions, counts)
    hardest = hardest_images(labels, predictions, *chances, counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a matrix of one byte a cell would be 66 MB
    assert (len(pairs), len(hardest)) == (20, 24)
