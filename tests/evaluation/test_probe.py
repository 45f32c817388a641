"""The linear probe: the minimum of every loss, the same as by other means, folded; the choice of its L2 strength."""

import numpy as np
import pytest
import torch

from livt_hf.evaluation.probe import choose_l2, fit_probe, held_out_loss, stratified_rows
from livt_hf.losses import LOSS_NAMES, build_loss

COUNTS = {"ant": 60, "bee": 25, "cat": 10}


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in 4 features of very different scales, one of them constant."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], list(COUNTS.values()))
    centers = np.array([[0.0, 0, 0], [1.5, 0, 1], [0, 1.5, -1]])
    features = centers[labels] + random.standard_normal((len(labels), 3))
    features = np.column_stack([features * [1.0, 100.0, 0.01] + [5.0, 0.0, 1.0], np.full(len(labels), 7.0)])
    return features.astype(np.float32), labels


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_the_gradient_vanishes_at_the_minimum_of_every_loss(problem, loss):
    """On standardized features, with weight and bias as if they had been found there."""
    features, labels = problem
    layer = fit_probe(features, labels, COUNTS, loss, l2=1e-2, device="cpu")
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std[3] = 1.0
    weight = (layer.weight.detach().double() * torch.from_numpy(std)).float().requires_grad_()
    bias = (layer.bias.detach().double() + layer.weight.detach().double() @ torch.from_numpy(mean)).float()
    bias.requires_grad_()
    x = torch.from_numpy(((features - mean) / std).astype(np.float32))
    loss_function = build_loss(loss, COUNTS)
    objective = loss_function(x @ weight.T + bias, torch.from_numpy(labels)) + 0.005 * weight.square().sum()
    objective.backward()
    start = torch.zeros(len(labels), 3)
    assert objective < loss_function(start, torch.from_numpy(labels))
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 2e-3
    assert weight[:, 3].abs().max() == 0  # a feature that never changes


def test_plain_cross_entropy_is_the_logistic_regression_of_scikit_learn(problem):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = problem
    x = (features - features.mean(axis=0)) / np.where(features.std(axis=0) < 1e-3, 1, features.std(axis=0))
    reference = linear_model.LogisticRegression(C=1 / (0.05 * len(labels)), tol=1e-8, max_iter=1000).fit(x, labels)
    layer = fit_probe(features, labels, COUNTS, "ce", l2=0.05, device="cpu")
    found = torch.from_numpy(features).requires_grad_(False)
    with torch.no_grad():
        probabilities = layer(found).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(x), atol=2e-3)


def test_the_scale_of_the_features_does_not_matter(problem):
    features, labels = problem
    with torch.no_grad():
        logits = fit_probe(features, labels, COUNTS, l2=0.1, device="cpu")(torch.from_numpy(features))
        scaled = fit_probe(features * 8 - 4, labels, COUNTS, l2=0.1, device="cpu")(torch.from_numpy(features * 8 - 4))
    torch.testing.assert_close(logits, scaled, atol=2e-3, rtol=1e-3)


def test_a_balanced_loss_predicts_rare_classes_more_often(problem):
    features, labels = problem
    predictions = {
        loss: fit_probe(features, labels, COUNTS, loss, l2=0.1, device="cpu")(torch.from_numpy(features)).argmax(1)
        for loss in ("ce", "bal_ce")
    }
    assert (predictions["bal_ce"] == 2).sum() > (predictions["ce"] == 2).sum()


def test_logits_computed_in_parts_give_the_same_layer(problem, monkeypatch):
    features, labels = problem
    whole = fit_probe(features, labels, COUNTS, l2=0.1, device="cpu")
    monkeypatch.setattr("livt_hf.evaluation.probe.LOGITS_AT_ONCE", 30)  # ten images
    parts = fit_probe(features, labels, COUNTS, l2=0.1, device="cpu")
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-3, rtol=1e-3)


def test_the_loss_of_all_images_is_not_computed_in_parts_where_they_would_differ(problem, monkeypatch):
    features, labels = problem
    weighted = {"loss": "ce", "class_weights": [1.0, 2.0, 5.0]}
    whole = fit_probe(features, labels, COUNTS, l2=0.1, device="cpu", **weighted)
    monkeypatch.setattr("livt_hf.evaluation.probe.LOGITS_AT_ONCE", 30)
    assert torch.equal(fit_probe(features, labels, COUNTS, l2=0.1, device="cpu", **weighted).weight, whole.weight)


def test_the_strength_with_the_smallest_held_out_loss_is_taken(problem):
    features, labels = problem
    losses = choose_l2(features, labels, COUNTS, seed=3, device="cpu")
    best = min(losses, key=losses.__getitem__)
    chosen = fit_probe(features, labels, COUNTS, seed=3, device="cpu")
    assert torch.equal(chosen.weight, fit_probe(features, labels, COUNTS, l2=best, device="cpu").weight)
    assert list(losses) == sorted(losses, reverse=True)


def test_noise_needs_a_strong_penalty_and_a_small_difference_of_features_a_weak_one():
    random = np.random.default_rng(1)
    labels, counts = np.arange(90) % 3, dict.fromkeys("abc", 30)
    noise = random.standard_normal((90, 30)).astype(np.float32)
    difference = noise[:, :4] + 0.0
    difference[:, 1:] = noise[:, :1] + 0.03 * (np.eye(3, dtype=np.float32)[labels] + 0.3 * noise[:, 1:4])

    def best(features: np.ndarray) -> float:
        losses = choose_l2(features, labels, counts, device="cpu")
        return min(losses, key=losses.__getitem__)

    assert best(noise) >= 0.1
    assert best(difference) <= 1e-3


def test_validation_images_choose_where_there_are_some(problem):
    features, labels = problem
    flipped = features, (labels + 1) % 3  # the stronger the penalty, the less wrong
    losses = choose_l2(features, labels, COUNTS, validation=flipped, device="cpu")
    assert min(losses, key=losses.__getitem__) == 1.0


def test_the_held_out_loss_is_the_mean_over_classes_of_their_likelihood_without_the_prior():
    """Two classes, logits of the true one 2 and 3 nats ahead after the prior is taken out, both at their best scale."""
    labels = torch.tensor([0, 0, 0, 1])
    prior = np.log([0.75, 0.25])
    logits = torch.tensor([[2.0, 0.0]] * 3 + [[0.0, 3.0]]) + torch.from_numpy(prior).float()
    found = held_out_loss(logits, labels, prior)
    with_scale = min(
        0.5
        * (
            np.log1p(np.exp(-2 * scale + (scale - 1) * -np.log(3)))
            + np.log1p(np.exp(-3 * scale + (scale - 1) * np.log(3)))
        )
        for scale in np.geomspace(0.03, 30, 13)
    )
    assert found == pytest.approx(with_scale, abs=1e-6)


def test_a_part_of_every_class_is_held_out_but_never_its_only_image():
    labels = np.array([0] * 10 + [1] * 3 + [2])
    kept, held_out = stratified_rows(labels, 0.2, seed=0)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [2, 1, 0]
    assert sorted([*kept, *held_out]) == list(range(14))
    assert not np.array_equal(held_out, stratified_rows(labels, 0.2, seed=1)[1])
    assert np.array_equal(held_out, stratified_rows(labels, 0.2, seed=0)[1])


def test_classes_of_one_image_each_leave_nothing_to_choose_with():
    layer = fit_probe(np.eye(3, dtype=np.float32), np.arange(3), dict.fromkeys("abc", 1), device="cpu")
    assert layer(torch.eye(3)).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("features", "error"),
    [
        (np.full((3, 2), np.nan, dtype=np.float32), "features: they are not finite"),
        (np.ones((2, 2), dtype=np.float32), r"features: need shape \(N, D\) for 3 labels, got \(2, 2\)"),
    ],
)
def test_features_that_cannot_be_fitted_are_named(features, error):
    with pytest.raises(ValueError, match=error):
        fit_probe(features, np.arange(3), dict.fromkeys("abc", 1), l2=1.0, device="cpu")
