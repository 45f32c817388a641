"""Confident learning by hand-computed numbers; folds and probes that have not seen the image."""

import numpy as np
import pytest

from livt_hf.evaluation.label_issues import (
    confident_thresholds,
    find_label_issues,
    fit_out_of_fold,
    judge_labels,
    stratified_folds,
)

LABELS = np.array([0, 0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.2, 0.7, 0.1],  # confident of class 1
        [0.4, 0.35, 0.25],  # below all thresholds
        [0.1, 0.8, 0.1],
        [0.6, 0.4, 0.0],  # confident of class 0
        [0.1, 0.1, 0.8],
        [0.0, 0.62, 0.38],  # class 1 is above its threshold, 0.6
    ]
)


def test_thresholds_are_the_mean_self_confidence_of_each_class():
    confidence = PROBABILITIES[np.arange(7), LABELS]
    thresholds = confident_thresholds(LABELS, confidence, 4)
    assert thresholds == pytest.approx([1.5 / 3, 1.2 / 2, 1.18 / 2, np.inf])


def test_confident_joint_issues_and_margins_as_computed_by_hand():
    issues = judge_labels(LABELS, PROBABILITIES, 3)
    assert issues.joint.tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]  # image 2 is in none
    assert issues.rows.tolist() == [1, 6, 4]
    assert issues.labels.tolist() == [0, 2, 1]
    assert issues.suggested.tolist() == [1, 1, 0]
    assert issues.margins == pytest.approx([0.2 - 0.7, 0.38 - 0.62, 0.4 - 0.6])
    assert issues.probabilities == pytest.approx([0.2, 0.38, 0.4])
    assert issues.suggested_probabilities == pytest.approx([0.7, 0.62, 0.6])
    assert issues.agreed.tolist() == [2, 1, 1]


def test_the_largest_probability_counts_among_the_confident_classes_only():
    # Class 0 has the largest probability, but its threshold is 0.9; class 1 passes its own, 0.3.
    labels = np.array([0, 1, 1, 2, 2])
    values = np.array([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.7, 0.3, 0.0], [0.5, 0.4, 0.1], [0.0, 0.0, 1.0]])
    labels, values = np.append(labels, 0), np.vstack([values, [0.9, 0.1, 0.0]])
    issues = judge_labels(labels, values, 3)
    assert issues.joint.tolist() == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    assert (issues.rows.tolist(), issues.suggested.tolist()) == ([3], [1])
    assert issues.margins == pytest.approx([0.1 - 0.5])


def test_an_image_that_the_model_puts_into_its_class_is_not_listed():
    # Image 0 is below the threshold of its class (0.75) and above that of class 1 (0.3): off the diagonal, no issue.
    labels = np.array([0, 0, 1, 1])
    values = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.7, 0.3]])
    issues = judge_labels(labels, values, 2)
    assert issues.joint.tolist() == [[1, 1], [0, 2]]
    assert 0 not in issues.rows


def test_the_only_image_of_a_class_is_not_judged_and_its_class_not_suggested():
    labels = np.array([0, 0, 1, 1, 2])
    values = np.array([[0.1, 0.1, 0.8], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]])
    issues = judge_labels(labels, values, 3)
    assert issues.unjudged.tolist() == [2]
    assert len(issues.rows) == 0
    assert issues.joint.sum(axis=0)[2] == issues.joint.sum(axis=1)[2] == 0


def test_probabilities_computed_in_parts_give_the_same(monkeypatch):
    monkeypatch.setattr("livt_hf.evaluation.label_issues.IMAGES_AT_ONCE", 2)
    whole, parts = judge_labels(LABELS, PROBABILITIES, 3), judge_labels(LABELS, lambda rows: PROBABILITIES[rows], 3)
    for name in ("rows", "suggested", "margins", "joint", "agreed"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_folds_spread_every_class_and_all_images_evenly():
    labels = np.repeat([0, 1, 2, 3], [23, 5, 3, 1])
    folds = stratified_folds(labels, 5, seed=0)
    by_class = np.array([np.bincount(folds[labels == label], minlength=5) for label in range(4)])
    assert (by_class.max(axis=1) - by_class.min(axis=1)).max() <= 1
    assert set(by_class.sum(axis=0)) <= {6, 7}
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=1))


def separable(counts=(60, 30, 4), seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = 4.0 * np.eye(len(counts), 6)[labels] + random.normal(size=(len(labels), 6))
    return features.astype(np.float32), labels, {f"class {label}": n for label, n in enumerate(counts)}


def test_a_wrong_label_is_found_and_its_class_suggested():
    features, labels, _ = separable()
    given = labels.copy()
    given[[3, 70]] = 1, 0
    counts = {f"class {label}": int((given == label).sum()) for label in range(3)}
    issues = find_label_issues(features, given, counts, folds=5, seed=0, device="cpu")
    assert {(3, 0), (70, 1)} <= set(zip(issues.rows.tolist(), issues.suggested.tolist(), strict=True))
    assert len(issues.rows) <= 4
    again = find_label_issues(features, given, counts, folds=5, seed=0, device="cpu")
    np.testing.assert_array_equal(issues.rows, again.rows)


def test_an_image_has_no_part_in_the_probe_that_judges_it():
    features, labels, counts = separable((20, 10, 1))
    probes, fold_of = fit_out_of_fold(features, labels, counts, 4, seed=0, device="cpu")
    single = fold_of[labels == 2][0]
    assert [probe.bias[2].item() < -1e8 for probe in probes] == [fold == single for fold in range(4)]
    moved = features.copy()
    moved[5] += 1000
    other, _ = fit_out_of_fold(moved, labels, counts, 4, seed=0, device="cpu")
    same = [np.allclose(a.weight.detach(), b.weight.detach()) for a, b in zip(probes, other, strict=True)]
    assert same[fold_of[5]] or sum(same) == 0  # a different L2 strength changes all


@pytest.mark.parametrize("folds", [1, 61])
def test_folds_out_of_range(folds):
    with pytest.raises(ValueError, match=f"folds: {folds} is out of range"):
        find_label_issues(*separable(), folds=folds, seed=0)
