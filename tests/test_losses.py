"""Losses against the official values, closed forms, both theorems, and the limits of floating point."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from livt_hf import ClassPrior
from livt_hf.losses import LOSS_NAMES, build_loss

REFERENCE = json.loads((Path(__file__).parent / "fixtures" / "losses.json").read_text())
COUNTS = REFERENCE["class_counts"]
LOGITS = torch.tensor(REFERENCE["logits"])
HARD = torch.tensor(REFERENCE["labels"])
SOFT = torch.tensor(REFERENCE["soft_targets"])


@pytest.mark.parametrize(
    ("key", "name", "targets", "options"),
    [
        ("ce_soft", "ce", SOFT, {}),
        ("ce_hard", "ce", HARD, {}),
        ("label_smoothing_ce_hard", "ce", HARD, {"label_smoothing": 0.1}),
        ("bal_ce_soft_tau1", "bal_ce", SOFT, {}),
        ("bal_ce_soft_tau1.05", "bal_ce", SOFT, {"tau": 1.05}),
        ("bce_soft", "bce", SOFT, {}),
        ("bce_hard_smoothing0.1", "bce", HARD, {"label_smoothing": 0.1}),
        ("bal_bce_soft_tau1", "bal_bce", SOFT, {}),
        ("bal_bce_hard_smoothing0.1_tau1", "bal_bce", HARD, {"label_smoothing": 0.1}),
    ],
)
def test_equals_the_official_value(key, name, targets, options):
    loss = build_loss(name, COUNTS, **options)(LOGITS, targets)
    assert loss.item() == pytest.approx(REFERENCE["values"][key], rel=1e-6)


def test_theorem_1_the_count_form_and_the_pi_form_of_bal_ce_are_the_same_loss():
    """Eq. 3: log[1 + sum_{j != i} exp(log n_j - log n_i) exp(z_j - z_i)], in float64, against our pi form."""
    logits, log_n = LOGITS.double(), torch.tensor(COUNTS, dtype=torch.float64).log()
    rows = torch.arange(len(HARD))
    ratios = (log_n - log_n[HARD][:, None]).exp() * (logits - logits[rows, HARD][:, None]).exp()
    count_form = torch.log(1 + ratios.sum(dim=1) - ratios[rows, HARD]).mean()
    assert build_loss("bal_ce", COUNTS)(LOGITS, HARD).item() == pytest.approx(count_form.item(), rel=1e-6)


def test_theorem_2_bal_bce_is_the_bce_of_the_reweighted_sigmoid():
    """n e^z / (n e^z + (N - n)), the sigmoid seen as a softmax over yes and no, weighted by its counts."""
    logits, n = LOGITS.double(), torch.tensor(COUNTS, dtype=torch.float64)
    yes = n * logits.exp()
    probability = yes / (yes + (n.sum() - n))
    one_hot = F.one_hot(HARD, len(COUNTS)).double()
    expected = F.binary_cross_entropy(probability, one_hot, reduction="none").sum(dim=1).mean()
    assert build_loss("bal_bce", COUNTS)(LOGITS, HARD).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("balanced", "plain"), [("bal_ce", "ce"), ("bal_bce", "bce")])
def test_tau_scales_the_bias_and_tau_0_is_the_plain_loss(balanced, plain):
    prior = ClassPrior(COUNTS)
    bias = torch.from_numpy(prior.log_prior if balanced == "bal_ce" else prior.log_odds).float()
    assert build_loss(balanced, COUNTS, tau=0.0)(LOGITS, SOFT) == build_loss(plain, COUNTS)(LOGITS, SOFT)
    expected = build_loss(plain, COUNTS)(LOGITS + 1.7 * bias, SOFT).item()
    assert build_loss(balanced, COUNTS, tau=1.7)(LOGITS, SOFT).item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_multiply_each_class_term_of_the_bce_family():
    weights = np.linspace(0.5, 2.0, len(COUNTS))
    terms = F.binary_cross_entropy_with_logits(LOGITS.double(), SOFT.double(), reduction="none")
    expected = (terms * torch.from_numpy(weights)).sum(dim=1).mean().item()
    loss = build_loss("bce", COUNTS, class_weights=weights)
    assert loss(LOGITS, SOFT).item() == pytest.approx(expected, rel=1e-6)
    ones = build_loss("bal_bce", COUNTS, class_weights=[1.0] * len(COUNTS))
    assert ones(LOGITS, SOFT) == build_loss("bal_bce", COUNTS)(LOGITS, SOFT)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_smoothed_hard_labels_are_the_soft_targets_they_stand_for(name):
    rows = torch.full((len(HARD), len(COUNTS)), 0.1 / len(COUNTS))
    rows[torch.arange(len(HARD)), HARD] += 0.9
    smoothed = build_loss(name, COUNTS, label_smoothing=0.1)(LOGITS, HARD)
    assert smoothed.item() == pytest.approx(build_loss(name, COUNTS)(LOGITS, rows).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("targets", [HARD, SOFT], ids=["hard", "soft"])
def test_gradients_agree_with_finite_differences(name, targets):
    loss = build_loss(name, COUNTS, tau=1.05)
    logits = LOGITS.clone().requires_grad_()
    loss(logits, targets).backward()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(LOGITS.shape, generator=generator)
    step = 1e-2
    difference = (loss(LOGITS + step * direction, targets) - loss(LOGITS - step * direction, targets)) / (2 * step)
    assert (logits.grad * direction).sum().item() == pytest.approx(difference.item(), rel=1e-3)


def test_gradient_of_bal_bce_in_closed_form():
    logits = LOGITS.clone().requires_grad_()
    build_loss("bal_bce", COUNTS)(logits, SOFT).backward()
    bias = torch.from_numpy(ClassPrior(COUNTS).log_odds).float()
    torch.testing.assert_close(logits.grad, ((LOGITS + bias).sigmoid() - SOFT) / len(LOGITS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_logits_stay_finite_and_exact(name, value):
    logits = torch.zeros(2, len(COUNTS))
    logits[:, 3] = value
    logits.requires_grad_()
    targets = torch.tensor([3, 5])
    loss = build_loss(name, COUNTS)(logits, targets)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    # One of the two images has the extreme logit on the wrong side: its term is 1e4 up to the other, small, terms.
    assert loss.item() == pytest.approx(1e4 / 2, rel=0.01)


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    loss = build_loss(name, COUNTS)
    low = LOGITS.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = loss(low, SOFT)
    assert computed.dtype == torch.float32
    assert computed == loss(low.float(), SOFT)


def test_means_over_the_batch():
    loss = build_loss("bal_bce", COUNTS)
    halves = (loss(LOGITS[:8], HARD[:8]) + loss(LOGITS[8:], HARD[8:])) / 2
    assert loss(LOGITS, HARD).item() == pytest.approx(halves.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bal-bcee"}, "did you mean 'bal_bce'"),
        ({"name": "nonsense"}, "known: ce, bce"),
        ({"name": "ce", "label_smoothing": 1.0}, "label_smoothing: must be in"),
        ({"name": "bal_ce", "tau": float("nan")}, "tau: must be a finite number"),
        ({"name": "ce", "class_weights": [1.0] * 12}, "only the BCE family"),
        ({"name": "bce", "class_weights": [1.0] * 3}, "3 weights for 12 classes"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_loss(class_counts=COUNTS, **arguments)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (LOGITS[:, :5], HARD, r"logits: need shape \(B, 12\)"),
        (LOGITS, SOFT[:, :5], r"soft targets need shape \(B, 12\)"),
        (LOGITS, HARD[:, None], r"hard labels need shape \(B,\)"),
    ],
)
def test_wrong_shapes_are_named(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        build_loss("ce", COUNTS)(logits, targets)
