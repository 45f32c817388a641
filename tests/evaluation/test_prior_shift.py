"""The prior that logits assume, and accuracy under long-tailed test priors: closed forms."""

import math

import numpy as np
import pytest
import torch

from livt_hf import ClassPrior
from livt_hf.evaluation.prior_shift import assumed_log_prior, long_tailed_priors, prior_accuracies
from livt_hf.losses import build_loss

COUNTS = {"ant": 60, "bee": 30, "cat": 10}
PI = np.array([0.6, 0.3, 0.1])


def test_the_assumed_prior_depends_on_loss_tau_and_adjustment():
    prior = ClassPrior(COUNTS)
    for loss, tau, power in (("ce", 1.0, 1.0), ("bal_ce", 1.0, 0.0), ("bal_bce", 0.4, 0.6), (None, None, 1.0)):
        config = type("Config", (), {"loss": loss, "tau": tau})
        np.testing.assert_allclose(assumed_log_prior(config, prior), power * np.log(PI), rtol=1e-12)
    adjusted = type("Config", (), {"loss": "ce", "adjustment": {"target_prior": {"cat": 2, "ant": 1, "bee": 1}}})
    np.testing.assert_allclose(assumed_log_prior(adjusted, prior), np.log([0.25, 0.25, 0.5]), rtol=1e-12)
    with pytest.raises(ValueError, match="tau-normalized"):
        assumed_log_prior(type("Config", (), {"adjustment": {"tau_norm": 1.0}}), prior)


def test_forward_and_backward_follow_the_training_counts():
    priors = long_tailed_priors(ClassPrior({"small": 5, "large": 500, "middle": 50}))
    assert list(priors)[:2] == ["forward 50", "forward 25"]
    assert list(priors)[5] == "uniform"
    assert list(priors)[-1] == "backward 50"
    assert len(priors) == 11
    root = math.sqrt(25)
    np.testing.assert_allclose(priors["forward 25"], np.array([1 / 25, 1, 1 / root]) / (1 + 1 / 25 + 1 / root))
    np.testing.assert_allclose(priors["backward 25"], np.array([1, 1 / 25, 1 / root]) / (1 + 1 / 25 + 1 / root))
    np.testing.assert_allclose(priors["uniform"], [1 / 3] * 3)


def test_prior_accuracies_weight_classes_by_the_prior():
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    predicted = {
        "labels": labels,
        "predictions": np.array([0, 0, 0, 1, 1, 0, 3]),  # 75 %, 50 %, -, 100 %
        "shifted_predictions": np.array([[0], [0], [0], [0], [0], [0], [3]]),  # 100 %, 0 %, -, 100 %
    }
    # class 2 has no test image: the prior of the others becomes 4/8, 3/8, 1/8
    outcome = prior_accuracies(predicted, {"forward": np.array([0.4, 0.3, 0.2, 0.1])})["forward"]
    assert outcome["accuracy"] == pytest.approx(4 / 8 * 75 + 3 / 8 * 50 + 1 / 8 * 100)
    assert outcome["shifted"] == pytest.approx(4 / 8 * 100 + 1 / 8 * 100)


def test_class_weights_move_the_prior_that_a_softmax_loss_assumes():
    """Its minimum for one image of each label, found by Newton's method, is the prior w pi; bce has no such shift."""
    counts = {"a": 60, "b": 25, "c": 15}
    weights = {"a": 0.5, "b": 2.0, "c": 3.0}
    prior = ClassPrior(counts)
    labels = torch.arange(3).repeat_interleave(torch.tensor(prior.counts))
    for name in ("ce", "bal_ce", "bce", "bal_bce"):
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        loss = build_loss(name, counts, class_weights=list(weights.values()))
        optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14)

        def closure(logits=logits, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(logits.expand(100, 3), labels)
            value.backward()
            return value

        optimizer.step(closure)
        config = type("Config", (), {"loss": name, "tau": 1.0, "class_weights": weights})
        if name.endswith("bce"):  # each logit is that of one class alone
            plain = prior.log_odds if name == "bce" else np.zeros(3)
            np.testing.assert_allclose(logits.detach().numpy(), plain, atol=1e-3)
            expected = prior.log_prior if name == "bce" else np.zeros(3)
            np.testing.assert_allclose(assumed_log_prior(config, prior), expected)
            continue
        found, expected = logits.detach().numpy(), assumed_log_prior(config, prior)
        np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-3)
