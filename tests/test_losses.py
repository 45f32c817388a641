"""Losses against the official values, closed forms, the papers' theorems, and the limits of floating point."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.paths import FIXTURES
from livt_hf import ClassPrior, losses
from livt_hf.losses import (
    BALANCED_LOSSES,
    LOSS_NAMES,
    build_loss,
    deferred_weights,
    effective_number_weights,
    lade_regularizer,
    las_smoothing,
    ldam_margins,
    loss_options,
)

REFERENCE = json.loads((FIXTURES / "losses.json").read_text())
COUNTS = REFERENCE["class_counts"]
LOGITS = torch.tensor(REFERENCE["logits"])
HARD = torch.tensor(REFERENCE["labels"])
SOFT = torch.tensor(REFERENCE["soft_targets"])
BOTH_KINDS = [(name, kind) for name in LOSS_NAMES for kind in ("hard", "soft") if (name, kind) != ("lade", "soft")]
TARGETS = {"hard": HARD, "soft": SOFT}


def in_float64(name, targets, tau=1.0, **options):
    """The loss as a function of float64 logits, without the cast of `build_loss`."""
    function, arguments_of = losses._LOSSES[name].function, losses._LOSSES[name].arguments
    arguments = arguments_of(ClassPrior(COUNTS), tau, **options)
    arguments = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    targets = targets.double() if targets.is_floating_point() else targets
    return lambda logits: function(logits, targets, 0.0, **arguments)


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
        ("cb_bce_soft", "cb_bce", SOFT, {}),
        ("cb_ce_hard", "cb_ce", HARD, {}),
        ("mislas_concave_hard", "las", HARD, {}),
        ("mislas_concave_soft", "las", SOFT, {}),
        ("ldam_hard_s30_m0.5", "ldam", HARD, {}),
    ],
)
def test_equals_the_official_value(key, name, targets, options):
    loss = build_loss(name, COUNTS, **options)(LOGITS, targets)
    assert loss.item() == pytest.approx(REFERENCE["values"][key], rel=1e-6)


def test_the_official_lade_is_the_regularizer():
    log_prior = torch.from_numpy(ClassPrior(COUNTS).log_prior).float()
    regularizer = lade_regularizer(LOGITS, HARD, log_prior, remine_lambda=0.1)
    assert regularizer.item() == pytest.approx(REFERENCE["values"]["lade_hard"], rel=1e-6)


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


@pytest.mark.parametrize("name", ["ce", "bce", "bal_ce", "bal_bce", "cb_bce", "focal"])
def test_smoothed_hard_labels_equal_smoothed_soft_targets(name):
    rows = torch.full((len(HARD), len(COUNTS)), 0.1 / len(COUNTS))
    rows[torch.arange(len(HARD)), HARD] += 0.9
    smoothed = build_loss(name, COUNTS, label_smoothing=0.1)(LOGITS, HARD)
    assert smoothed.item() == pytest.approx(build_loss(name, COUNTS)(LOGITS, rows).item(), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSS_NAMES if name not in ("cb_ce", "lade")])
def test_the_loss_of_mixed_labels_is_the_mixture_of_their_losses(name):
    """Per image: mixup's lambda * loss(y_a) + (1 - lambda) * loss(y_b)."""
    loss = build_loss(name, COUNTS)
    for z, a, b in zip(LOGITS[:, None], HARD, (HARD + 3) % len(COUNTS), strict=True):
        row = 0.7 * F.one_hot(a, len(COUNTS)) + 0.3 * F.one_hot(b, len(COUNTS))
        expected = 0.7 * loss(z, a[None]) + 0.3 * loss(z, b[None])
        assert loss(z, row[None]).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), BOTH_KINDS)
def test_gradients_agree_with_finite_differences(name, kind):
    function = in_float64(name, TARGETS[kind], tau=1.05)
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(function, (logits,))
    (expected,) = torch.autograd.grad(function(logits), logits)
    single = LOGITS.clone().requires_grad_()
    build_loss(name, COUNTS, tau=1.05)(single, TARGETS[kind]).backward()
    torch.testing.assert_close(single.grad, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradient_of_focal_at_probability_1(gamma):
    """A power below 1 has an infinite slope at p = 1; the loss is flat there nevertheless."""
    logits = torch.zeros(1, len(COUNTS))
    logits[0, 3] = 200.0
    logits.requires_grad_()
    build_loss("focal", COUNTS, gamma=gamma)(logits, torch.tensor([3])).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


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
    targets = torch.tensor([3, 5])
    single = logits.clone().requires_grad_()
    loss = build_loss(name, COUNTS)(single, targets)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(single.grad).all()
    assert loss.item() == pytest.approx(in_float64(name, targets)(logits.double()).item(), rel=1e-6)
    if name in ("ce", "bce", "bal_ce", "bal_bce", "focal"):
        # One of the two images has the extreme logit on the wrong side: its term is 1e4 up to the other, small, terms.
        assert loss.item() == pytest.approx(1e4 / 2, rel=0.01)


@pytest.mark.parametrize(("name", "kind"), BOTH_KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(name, kind, dtype):
    loss = build_loss(name, COUNTS)
    low = LOGITS.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = loss(low, TARGETS[kind])
    assert computed.dtype == torch.float32
    assert computed == loss(low.float(), TARGETS[kind])


def test_soft_targets_can_be_in_half_precision():
    loss = build_loss("bal_bce", COUNTS)
    assert loss(LOGITS, SOFT.bfloat16()) == loss(LOGITS, SOFT.bfloat16().float())


def test_means_over_the_batch():
    loss = build_loss("bal_bce", COUNTS)
    halves = (loss(LOGITS[:8], HARD[:8]) + loss(LOGITS[8:], HARD[8:])) / 2
    assert loss(LOGITS, HARD).item() == pytest.approx(halves.item(), rel=1e-6)


def test_effective_numbers_of_samples():
    """E_n = (1 - beta^n) / (1 - beta): 1, 1 + 0.5 and 1 + 0.5 + 0.25 for one to three images and beta = 0.5."""
    inverse = np.array([1.0, 1 / 1.5, 1 / 1.75])
    np.testing.assert_allclose(effective_number_weights([1, 2, 3], beta=0.5), inverse * 3 / inverse.sum(), rtol=1e-14)
    np.testing.assert_array_equal(effective_number_weights({"a": 5, "b": 500}, beta=0.0), [1.0, 1.0])
    near_1 = effective_number_weights(COUNTS, beta=1 - 1e-9)
    np.testing.assert_allclose(near_1 * COUNTS, (near_1 * COUNTS).mean(), rtol=1e-4)


@pytest.mark.parametrize(("targets", "smoothing"), [(HARD, 0.0), (HARD, 0.1), (SOFT, 0.1)])
def test_cb_ce_uses_the_weights_as_torch_does(targets, smoothing):
    weights = torch.from_numpy(effective_number_weights(COUNTS, beta=0.99))
    log_p = F.log_softmax(LOGITS.double(), dim=1)
    rows = SOFT if targets is SOFT else F.one_hot(HARD, len(COUNTS)) * (1 - smoothing) + smoothing / len(COUNTS)
    divisor = len(SOFT) if targets is SOFT else weights[HARD].sum()
    expected = -(weights * rows * log_p).sum() / divisor
    loss = build_loss("cb_ce", COUNTS, label_smoothing=smoothing, beta=0.99)(LOGITS, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_cb_bce_is_bce_with_those_weights():
    weighted = build_loss("bce", COUNTS, class_weights=effective_number_weights(COUNTS, beta=0.99))
    assert build_loss("cb_bce", COUNTS, beta=0.99)(LOGITS, HARD) == weighted(LOGITS, HARD)


def test_focal_by_hand_and_without_focus():
    """p = 3/4 for the label: (1/4)^gamma * log(4/3)."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    for gamma in (2.0, 0.5):
        loss = build_loss("focal", [10, 10], gamma=gamma)(logits, torch.tensor([0]))
        assert loss.item() == pytest.approx(0.25**gamma * math.log(4 / 3), rel=1e-6)
    plain = build_loss("ce", COUNTS)(LOGITS, SOFT).item()
    assert build_loss("focal", COUNTS, gamma=0.0)(LOGITS, SOFT).item() == pytest.approx(plain, rel=1e-6)


def test_ldam_subtracts_the_margin_of_the_label_and_scales():
    np.testing.assert_allclose(ldam_margins([16, 81, 256]), [0.5, 0.5 * 2 / 3, 0.25], rtol=1e-14)
    shifted = LOGITS.double()
    margins = ldam_margins(COUNTS, max_margin=0.8)
    shifted[range(len(HARD)), HARD] -= torch.from_numpy(margins)[HARD]
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(7 * shifted, HARD, label_smoothing=smoothing).item()
        loss = build_loss("ldam", COUNTS, label_smoothing=smoothing, max_margin=0.8, scale=7.0)
        assert loss(LOGITS, HARD).item() == pytest.approx(expected, rel=1e-6)
    unscaled = build_loss("ldam", COUNTS, max_margin=0.0, scale=1.0)(LOGITS, HARD).item()
    assert unscaled == pytest.approx(build_loss("ce", COUNTS)(LOGITS, HARD).item(), rel=1e-6)


def test_deferred_reweighting_of_ldam():
    """Before the switch the loss is ldam's; after it, the same with torch's class weights (LDAM-DRW)."""
    before = build_loss("ldam", COUNTS, class_weights=deferred_weights(COUNTS, progress=0.79))
    after = build_loss("ldam", COUNTS, class_weights=deferred_weights(COUNTS, progress=0.8))
    for targets in (HARD, SOFT):
        plain = build_loss("ldam", COUNTS)(LOGITS, targets).item()
        assert before(LOGITS, targets).item() == pytest.approx(plain, rel=1e-6)
    shifted = LOGITS.clone()
    shifted[range(len(HARD)), HARD] -= torch.from_numpy(ldam_margins(COUNTS)).float()[HARD]
    weights = torch.from_numpy(effective_number_weights(COUNTS)).float()
    expected = F.cross_entropy(30 * shifted, HARD, weight=weights).item()
    assert after(LOGITS, HARD).item() == pytest.approx(expected, rel=1e-6)
    # Soft: t_1 w_1 loss(y_1) + t_2 w_2 loss(y_2) of each image, averaged over the images.
    one = build_loss("ldam", COUNTS)
    terms = [
        share * weights[label] * one(z[None], label[None])
        for z, row in zip(LOGITS, SOFT, strict=True)
        for share, label in zip(*row.topk(2), strict=True)
    ]
    assert after(LOGITS, SOFT).item() == pytest.approx(sum(terms).item() / len(SOFT), rel=1e-5)


def test_las_smooths_the_largest_class_most():
    np.testing.assert_allclose(
        las_smoothing([5, 9, 17, 29], 0.4, 0.1), [0.1, *(0.1 + 0.3 * np.sin([np.pi / 12, np.pi / 4])), 0.4]
    )
    np.testing.assert_array_equal(las_smoothing([7, 7, 7]), [0.0, 0.0, 0.0])
    head = torch.full((4,), int(np.argmax(COUNTS)))
    expected = build_loss("ce", COUNTS, label_smoothing=0.3)(LOGITS[:4], head).item()
    assert build_loss("las", COUNTS)(LOGITS[:4], head).item() == pytest.approx(expected, rel=1e-6)
    # Uniform smoothing on top: 1 - (1 - 0.3) (1 - 0.1) in all.
    expected = build_loss("ce", COUNTS, label_smoothing=0.37)(LOGITS[:4], head).item()
    both = build_loss("las", COUNTS, label_smoothing=0.1)(LOGITS[:4], head)
    assert both.item() == pytest.approx(expected, rel=1e-6)


def test_lade_adds_the_regularizer_to_the_compensated_cross_entropy():
    """The regularizer class by class, in float64; classes 6, 8 and 9 have no image in this batch."""
    logits, pi = LOGITS.double().numpy(), ClassPrior(COUNTS).pi
    regularizer = 0.0
    for label, share in enumerate(pi):
        own = logits[HARD.eq(label), label]
        bound = np.log(np.mean(np.exp(logits[:, label]) / (len(pi) * share)))
        regularizer -= share * ((own.mean() if len(own) else 0.0) - bound - 0.3 * bound**2)
    loss = build_loss("lade", COUNTS, tau=1.1, label_smoothing=0.1, alpha=0.7, remine_lambda=0.3)
    cross_entropy = build_loss("bal_ce", COUNTS, tau=1.1, label_smoothing=0.1)(LOGITS, HARD).item()
    assert loss(LOGITS, HARD).item() == pytest.approx(cross_entropy + 0.7 * regularizer, rel=1e-6)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_tau_affects_the_balanced_losses_only(name):
    values = {tau: build_loss(name, COUNTS, tau=tau)(LOGITS, HARD).item() for tau in (0.0, 1.5)}
    assert (values[0.0] != values[1.5]) == (name in BALANCED_LOSSES)


def test_options_of_each_loss():
    assert {name: list(loss_options(name)) for name in LOSS_NAMES} == {
        "ce": ["class_weights"],
        "bce": ["class_weights"],
        "bal_ce": ["class_weights"],
        "bal_bce": ["class_weights"],
        "cb_ce": ["beta"],
        "cb_bce": ["beta"],
        "focal": ["gamma"],
        "ldam": ["max_margin", "scale", "class_weights"],
        "las": ["smooth_head", "smooth_tail"],
        "lade": ["alpha", "remine_lambda"],
    }
    assert loss_options("lade") == {"alpha": 0.1, "remine_lambda": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bal-bcee"}, "did you mean 'bal_bce'"),
        ({"name": "nonsense"}, "known: ce, bce"),
        ({"name": "ce", "label_smoothing": 1.0}, "label_smoothing: must be in"),
        ({"name": "bal_ce", "tau": float("nan")}, "tau: must be a finite number"),
        (
            {"name": "las", "class_weights": [1.0] * 12},
            "class_weights: not an option of the loss 'las'; its options: smooth_head, smooth_tail",
        ),
        (
            {"name": "ldam", "gamma": 2.0},
            "gamma: not an option of the loss 'ldam'; .*: max_margin, scale, class_weights",
        ),
        ({"name": "bce", "class_weights": [1.0] * 3}, "3 weights for 12 classes"),
        ({"name": "bce", "class_weights": [1.0] * 11 + [-1.0]}, "class_weights: must be finite and not negative"),
        ({"name": "focal", "gamma": -1.0}, "gamma: must be finite and not negative"),
        ({"name": "focal", "gamma": None}, "gamma: must be finite and not negative"),
        ({"name": "cb_ce", "beta": 1.0}, r"beta: must be in \[0, 1\)"),
        ({"name": "las", "smooth_head": 1.2}, r"smooth_head, smooth_tail: must be in \[0, 1\]"),
    ],
)
def test_invalid_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_loss(class_counts=COUNTS, **arguments)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (LOGITS[:, :5], HARD, r"logits: need shape \(B, 12\)"),
        (LOGITS, SOFT[:, :5], r"soft targets need shape \(B, 12\)"),
        (LOGITS, HARD[:, None], r"hard labels need shape \(B,\)"),
        (LOGITS, HARD + 1, r"label 12 is out of range; 12 classes have labels 0 to 11"),
        (LOGITS, torch.full_like(HARD, -100), "label -100 is out of range"),
        (LOGITS, SOFT * 1.5, "each row of soft targets must sum to 1, one sums to 1.5"),
        (LOGITS, SOFT * torch.nan, "each row of soft targets must sum to 1, one sums to nan"),
    ],
)
def test_invalid_logits_and_targets_are_named(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        build_loss("ce", COUNTS)(logits, targets)


def test_soft_targets_are_an_error_with_lade():
    with pytest.raises(ValueError, match="the loss 'lade' is defined for hard labels only"):
        build_loss("lade", COUNTS)(LOGITS, SOFT)
