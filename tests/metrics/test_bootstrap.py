"""Confidence intervals against exact results, an independent resampling, and simulated test sets."""

import numpy as np
import pytest
from scipy.stats import binom

from livt_hf.metrics import bootstrap_intervals, calibration_error, long_tail_accuracy, paired_differences
from livt_hf.metrics.bootstrap import FEWEST_DIFFERENT, MEASURES

COUNTS = {"a": 500, "b": 300, "c": 60, "d": 40, "e": 9, "f": 5}


def outcomes(images, right, seed=0, classes=6):
    """Labels, predictions, confidences: a share of the images of each class is right."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    correct = rng.random(len(labels)) < right
    return labels, np.where(correct, labels, (labels + 1) % classes), rng.uniform(0.3, 1.0, len(labels))


def test_the_overall_accuracy_has_the_quantiles_of_the_binomial_distribution():
    """One class with test images: a resample has a binomial number of right ones, of n / (n - 1) times the variance."""
    labels, right, n = np.zeros(200, dtype=int), 130, 200
    predictions = np.where(np.arange(n) < right, 0, 1)
    found = bootstrap_intervals(labels, predictions, np.full(n, 0.9), {"a": 500, "b": 5}, resamples=20_000)
    quantiles = 100 * binom.ppf([0.025, 0.975], n, right / n) / n
    expected = 65 + (quantiles - 65) * np.sqrt(n / (n - 1))
    assert found["accuracy"] == pytest.approx(expected, abs=0.51)  # one image is 0.5 points
    assert found["many"] == found["accuracy"]
    assert found["medium"] is found["few"] is None


def test_intervals_are_those_of_drawing_images_one_by_one():
    """An independent reference, without the enlarged deviations, which 200 images per class hardly change."""
    labels, predictions, confidences = outcomes(200, 0.6)
    found = bootstrap_intervals(labels, predictions, confidences, COUNTS, seed=3)
    rng, drawn = np.random.default_rng(8), []
    of_class = [np.flatnonzero(labels == label) for label in range(6)]
    for _ in range(600):
        chosen = np.concatenate([rng.choice(images, len(images)) for images in of_class])
        values = long_tail_accuracy(labels[chosen], predictions[chosen], COUNTS)
        values |= calibration_error(labels[chosen], predictions[chosen], confidences[chosen])
        drawn.append([values[measure] for measure in MEASURES])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    for place, measure in enumerate(MEASURES[:5]):
        assert found[measure] == pytest.approx([low[place], high[place]], abs=0.7)
    ece = calibration_error(labels, predictions, confidences)["ece"]
    assert found["ece"] == pytest.approx([2 * ece - high[5], 2 * ece - low[5]], abs=0.7)
    assert found["method"] == {"level": 95.0, "resamples": 1000, "seed": 3, "stratified_by": "class", "exact": []}


def test_classes_are_strata_so_that_a_difference_between_them_adds_nothing():
    """Two classes of 300 images, one nearly always right, one nearly never: all resamples are close to 50 %."""
    labels = np.repeat([0, 1], 300)
    predictions = np.where(np.arange(600) % 100 == 0, 1 - labels, labels)
    predictions[300:] = 1 - predictions[300:]
    low, high = bootstrap_intervals(labels, predictions, np.full(600, 0.5), {"a": 9, "b": 5})["accuracy"]
    assert 0.5 < 50 - low < 1.0  # 1.96 * sqrt(600 * 0.01 * 0.99) / 600: 0.8 points; 4 points without strata
    assert 0.5 < high - 50 < 1.0


@pytest.mark.parametrize("images", [1, 2])
def test_few_images_a_class_make_wide_intervals_not_narrow_ones(images):
    """64 few-shot classes with 1 or 2 images: the standard error is sqrt(0.25 / n), as of one class with all images."""
    counts = dict.fromkeys(range(64), 5)
    labels = np.repeat(np.arange(64), images)
    halves = []
    for seed in range(40):
        correct = np.random.default_rng(seed).random(len(labels)) < 0.5
        predictions = np.where(correct, labels, (labels + 1) % 64)
        low, high = bootstrap_intervals(labels, predictions, np.full(len(labels), 0.5), counts, resamples=200)["few"]
        halves.append((high - low) / 2)
    assert np.mean(halves) == pytest.approx(100 * 1.96 * np.sqrt(0.25 / len(labels)), rel=0.06)


def test_where_every_image_is_right_or_wrong_the_interval_is_that_of_clopper_and_pearson():
    labels = np.repeat([0, 2, 4], [30, 10, 20])
    predictions = np.where(labels == 4, 0, labels)
    predictions[0] = 1
    found = bootstrap_intervals(labels, predictions, np.full(60, 0.5), COUNTS)
    assert found["medium"] == pytest.approx([100 * 0.025 ** (1 / 10), 100.0])  # 69.2: 30.8 % of 10 images is 3
    assert found["few"] == pytest.approx([0.0, 100 * (1 - 0.025 ** (1 / 20))])
    assert found["method"]["exact"] == ["medium", "few"]
    assert found["many"][0] < 100 * 29 / 30 < found["many"][1] <= 100.0


def test_unequal_classes_count_as_fewer_images():
    """Mean of two classes with 2 and 18 images, all right: (1)^2 / (2 (1/4)^2 + 18 (1/36)^2) = 7.2 images."""
    labels = np.repeat([4, 5], [2, 18])
    found = bootstrap_intervals(labels, labels, np.ones(20), COUNTS)
    assert found["few"] == pytest.approx([100 * 0.025 ** (1 / 7.2), 100.0])
    assert found["accuracy"] == pytest.approx([100 * 0.025 ** (1 / 20), 100.0])


def test_intervals_contain_the_truth_as_often_as_they_say():
    """150 simulated test sets; a calibrated model, whose ECE is 0, and one that is 10 points too confident."""
    counts = dict.fromkeys(range(20), 5)
    labels = np.repeat(np.arange(20), 10)
    for excess in (0.0, 0.1):
        hits = np.zeros(3)
        for seed in range(150):
            rng = np.random.default_rng(seed)
            confidences = rng.uniform(0.4, 1.0, len(labels))
            correct = rng.random(len(labels)) < confidences - excess
            found = bootstrap_intervals(
                labels, np.where(correct, labels, (labels + 1) % 20), confidences, counts, resamples=100
            )
            truth = {"accuracy": 70 - 100 * excess, "few": 70 - 100 * excess, "ece": 100 * excess}
            hits += [found[measure][0] <= value <= found[measure][1] for measure, value in truth.items()]
        accuracy, few, ece = hits / 150
        assert 0.9 <= accuracy <= 0.99
        assert 0.9 <= few <= 0.99
        assert ece >= (0.93 if excess == 0 else 0.85)


def test_the_seed_decides_and_inputs_are_checked():
    values = outcomes(20, 0.5)
    assert bootstrap_intervals(*values, COUNTS) == bootstrap_intervals(*values, COUNTS)
    assert bootstrap_intervals(*values, COUNTS, seed=1)["accuracy"] != bootstrap_intervals(*values, COUNTS)["accuracy"]
    labels, predictions, confidences = values
    with pytest.raises(ValueError, match="lengths differ: 120 labels, 120 predictions, 119 confidences"):
        bootstrap_intervals(labels, predictions, confidences[1:], COUNTS)
    with pytest.raises(ValueError, match="predictions: value 9 at position 0 is out of range"):
        bootstrap_intervals(labels, np.full(120, 9), confidences, COUNTS)


# Differences


def model(predictions, confidences):
    return {"predictions": predictions, "confidences": confidences}


def test_a_paired_difference_is_more_certain_than_two_intervals_show():
    """The better model corrects 12 of 300 mistakes: far less than the intervals, which overlap, and yet certain."""
    labels, predictions, confidences = outcomes(100, 0.5)
    better = predictions.copy()
    wrong = np.flatnonzero(predictions != labels)[::20]
    better[wrong] = labels[wrong]
    found = paired_differences(labels, [model(better, confidences)], [model(predictions, confidences)], COUNTS)
    accuracy = found["accuracy"]
    assert accuracy["difference"] == pytest.approx(100 * len(wrong) / 600)
    spread = 100 * np.sqrt(len(wrong)) / 600  # each correction is drawn a Poisson number of times
    assert accuracy["interval"] == pytest.approx(accuracy["difference"] + 1.96 * spread * np.array([-1, 1]), abs=0.2)
    assert accuracy["significant"] is True
    alone = bootstrap_intervals(labels, predictions, confidences, COUNTS)["accuracy"]
    assert alone[1] > bootstrap_intervals(labels, better, confidences, COUNTS)["accuracy"][0]


def test_equal_models_do_not_differ_and_the_sign_is_that_of_the_first():
    labels, predictions, confidences = outcomes(50, 0.5)
    same = model(predictions, confidences)
    found = paired_differences(labels, [same], [same], COUNTS)
    assert all(of == {"difference": 0.0, "interval": [0.0, 0.0], "significant": False} for of in found.values())
    perfect = paired_differences(labels, [same], [model(labels, confidences)], COUNTS)
    assert perfect["few"]["difference"] < 0
    assert perfect["few"]["interval"][1] < 0


def test_seeds_are_averaged_over_the_same_images():
    """Two seeds that are right on opposite images are 50 % right on any resample: nothing varies."""
    labels, _, confidences = outcomes(50, 0.5)
    even = np.arange(len(labels)) % 2 == 0
    seeds = [model(np.where(side, labels, (labels + 1) % 6), confidences) for side in (even, ~even)]
    wrong = model((labels + 1) % 6, confidences)
    found = paired_differences(labels, seeds, [wrong, wrong], COUNTS)
    assert found["accuracy"]["difference"] == pytest.approx(50)
    assert found["accuracy"]["interval"] == pytest.approx([50, 50])


@pytest.mark.parametrize(("images", "significant"), [(FEWEST_DIFFERENT - 1, False), (FEWEST_DIFFERENT, True)])
def test_five_images_cannot_differ_significantly(images, significant):
    """All wrong against all right, without any spread: a two-sided sign test of 5 has p = 0.0625, of 6 0.031."""
    labels = np.repeat([0, 4], [20, images])
    right, wrong = np.where(labels == 4, 4, 0), np.zeros_like(labels)
    confidences = np.full(len(labels), 0.5)
    found = paired_differences(labels, [model(right, confidences)], [model(wrong, confidences)], COUNTS)
    assert found["few"]["interval"] == pytest.approx([100.0, 100.0])
    assert found["few"]["significant"] is significant
    assert found["medium"] is None


def test_a_difference_of_nothing_is_significant_in_one_of_twenty_test_sets():
    labels = np.repeat(np.arange(6), 50)
    found = []
    for seed in range(120):
        models = []
        for number in (0, 1):
            _, predictions, confidences = outcomes(50, 0.6, seed=2 * seed + number)
            models.append(model(predictions, confidences))
        found.append(paired_differences(labels, models[:1], models[1:], COUNTS, resamples=100)["accuracy"])
    assert 0.0 < np.mean([of["significant"] for of in found]) <= 0.1


def test_a_model_that_always_predicts_one_class_is_not_certain():
    """Resamples within classes are all equal; the interval is that of 4 right images of 12 (0.0992 to 0.6511)."""
    labels = np.repeat([0, 1, 2], 4)
    found = bootstrap_intervals(labels, np.zeros(12, dtype=np.int64), np.full(12, 0.5), [30, 30, 30], resamples=50)
    assert found["accuracy"] == pytest.approx([9.92, 65.11], abs=0.01)
    assert found["macro_accuracy"] == found["accuracy"]
    assert "accuracy" in found["method"]["exact"]
