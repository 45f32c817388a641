"""Calibration error and reliability bins: the official implementation's numbers and hand-computed ones."""

import numpy as np
import pytest

from livt_hf.metrics import calibration_error, reliability_bins


def test_calibration_equals_the_official_one(reference):
    result = calibration_error(reference["labels"], reference["predictions"], reference["confidences"])
    assert result["ece"] == pytest.approx(100 * float(reference["ece"]), abs=1e-9)
    assert result["mce"] == pytest.approx(100 * float(reference["mce"]), abs=1e-9)


def test_bins_include_their_upper_edge_and_the_first_one_zero():
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
    ("confidences", "message"),
    [([0.5], "lengths differ"), ([0.5, 1.5], "value 1.5 at position 1"), ([np.nan, 0.5], "value nan at position 0")],
)
def test_bad_confidences_are_named(confidences, message):
    with pytest.raises(ValueError, match=message):
        calibration_error([0, 1], [0, 1], confidences)
