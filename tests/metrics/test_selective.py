"""Accuracy over coverage, by hand."""

import numpy as np
import pytest

from livt_hf.metrics import long_tail_accuracy, selective_accuracy
from livt_hf.metrics.selective import THRESHOLDS

COUNTS = {"a": 500, "b": 9, "c": 5}
LABELS = np.array([0, 0, 0, 0, 1, 2, 2, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 2, 0, 0])
CONFIDENCES = np.array([0.99, 0.95, 0.9, 0.6, 0.7, 0.9, 0.55, 0.2])


def test_thresholds_answer_the_images_that_are_at_least_as_confident():
    found = {
        row["min_score"]: row for row in selective_accuracy(LABELS, PREDICTIONS, CONFIDENCES, COUNTS)["thresholds"]
    }
    assert list(found) == list(THRESHOLDS)
    assert (found[0.0]["coverage"], found[0.0]["accuracy"]) == (100.0, 62.5)
    assert (found[0.6]["coverage"], found[0.6]["accuracy"]) == (75.0, pytest.approx(500 / 6))
    assert (found[0.9]["coverage"], found[0.9]["accuracy"]) == (50.0, 100.0)
    # Few-shot: b has one image (right), c three, of which the right one has 0.9; each class counts half.
    assert found[0.0]["few_accuracy"] == pytest.approx(long_tail_accuracy(LABELS, PREDICTIONS, COUNTS)["few"])
    assert found[0.5]["few_coverage"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found[0.5]["few_accuracy"] == pytest.approx(100 * (1 + 1 / 3) / (1 + 2 / 3))
    assert found[0.9]["few_coverage"] == pytest.approx(100 / 6)
    assert (found[0.99]["few_coverage"], found[0.99]["few_accuracy"]) == (0.0, None)


def test_the_curve_and_its_mean():
    found = selective_accuracy(LABELS, PREDICTIONS, CONFIDENCES, COUNTS)
    curve = dict(zip(found["curve"]["coverage"], found["curve"]["accuracy"], strict=True))
    assert (curve[1], curve[50], curve[100]) == (100.0, 100.0, 62.5)
    assert curve[75] == pytest.approx(500 / 6)
    # Steps at 1, 2, 4 (equal confidences), 5, 6, 7 and 8 of 8 images
    assert found["area"] == pytest.approx(100 * (5 + 5 / 6 + 5 / 7 + 5 / 8) / 8)
    assert found["curve"]["few"][-1] == pytest.approx(100 * 2 / 3)


def test_equal_confidences_are_answered_together_whatever_their_order():
    labels, confidences = np.zeros(4, dtype=int), np.full(4, 0.8)
    for predictions in ([0, 0, 1, 1], [1, 1, 0, 0]):
        found = selective_accuracy(labels, predictions, confidences, COUNTS)
        assert set(found["curve"]["accuracy"]) == {50.0}
        assert found["area"] == 50.0
        assert found["curve"]["few"] is None
        assert found["thresholds"][0]["few_accuracy"] is None
