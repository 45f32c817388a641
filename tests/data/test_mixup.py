"""Mixup against hand computation and timm's formulas; independent of how the batch is split."""

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target, rand_bbox

from livt_hf.data import Mixup

PIXELS = torch.arange(4 * 3 * 8 * 6, dtype=torch.float32).view(4, 3, 8, 6)
LABELS = torch.tensor([2, 0, 1, 1])


def first_step(mixup, kind):
    """A step with mixup (no box), or with CutMix and a box that is not empty."""
    for step in range(100):
        ratio, box = mixup.draw(step, 8, 6)
        if (kind == "cutmix" and ratio < 1 and box) or (kind == "mixup" and box is None):
            return step, ratio, box
    raise AssertionError(kind)


def test_mixup_by_hand():
    mixup = Mixup(3, label_smoothing=0.0, seed=5)
    step, ratio, _ = first_step(mixup, "mixup")
    pixels, targets = mixup(PIXELS, LABELS, step)
    rest = 1 - ratio
    torch.testing.assert_close(pixels[0], ratio * PIXELS[0] + rest * PIXELS[1])
    torch.testing.assert_close(pixels[3], ratio * PIXELS[3] + rest * PIXELS[2])
    expected = torch.tensor([[rest, 0, ratio], [ratio, 0, rest], [0, 1, 0], [0, 1, 0]])
    torch.testing.assert_close(targets, expected)


def test_cutmix_by_hand():
    mixup = Mixup(3, label_smoothing=0.0, seed=5)
    step, ratio, (top, bottom, left, right) = first_step(mixup, "cutmix")
    pixels, targets = mixup(PIXELS, LABELS, step)
    inside = torch.zeros(8, 6, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert ratio == 1 - int(inside.sum()) / 48
    assert torch.equal(pixels[0], torch.where(inside, PIXELS[1], PIXELS[0]))
    assert torch.equal(pixels[2], torch.where(inside, PIXELS[3], PIXELS[2]))
    torch.testing.assert_close(targets[1], torch.tensor([ratio, 0, 1 - ratio]))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_smoothed_targets_equal_timm(kind):
    """timm pairs sample i with B - 1 - i, which for two samples is the neighbor."""
    mixup = Mixup(3, label_smoothing=0.1, seed=5)
    step, ratio, _ = first_step(mixup, kind)
    _, targets = mixup(PIXELS[:2], LABELS[:2], step)
    torch.testing.assert_close(targets, mixup_target(LABELS[:2], 3, ratio, smoothing=0.1))
    assert targets.dtype == torch.float32


def test_cutmix_boxes_have_timms_distribution():
    """Height, width and center of 4,000 boxes with lambda ~ Beta(1, 1): means within 4 standard errors."""
    mixup = Mixup(3, mixup_alpha=0.0, seed=1)
    ours = np.array([mixup.draw(step, 40, 30)[1] for step in range(4000)])  # top, bottom, left, right
    random = np.random.RandomState(0)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    theirs = np.array([rand_bbox((1, 3, 40, 30), random.beta(1, 1)) for _ in range(4000)])
    standard_error = np.sqrt((ours.var(0) + theirs.var(0)) / 4000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * standard_error).all()
    height_ours, height_theirs = np.diff(ours[:, :2]), np.diff(theirs[:, :2])
    assert abs(height_ours.mean() - height_theirs.mean()) < 4 * np.sqrt(2 * height_ours.var() / 4000)


def test_lambda_follows_its_beta_distribution_and_the_switch_its_probability():
    mixup = Mixup(3, mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5)
    draws = [mixup.draw(step, 32, 32) for step in range(4000)]
    ratios = np.array([ratio for ratio, box in draws if box is None])
    assert 1870 < len(ratios) < 2130  # half of 4,000, 4 standard deviations of 32
    assert abs(ratios.mean() - 0.5) < 4 * np.sqrt(1 / (4 * 2.6) / len(ratios))  # Var Beta(a, a) = 1 / (4 (2a + 1))
    assert abs(ratios.var() - 1 / (4 * 2.6)) < 0.01
    kept = sum(Mixup(3, prob=0.25).draw(step, 32, 32)[0] == 1.0 for step in range(1000))
    assert 690 < kept < 810


def test_the_draw_depends_on_seed_and_step_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (Mixup(3, seed=7)(PIXELS, LABELS, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    draws = {Mixup(3, seed=seed).draw(step, 224, 224) for seed in range(4) for step in range(50)}
    assert len(draws) > 190


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_may_be_split_between_pairs(kind):
    mixup = Mixup(3, seed=5)
    step, _, _ = first_step(mixup, kind)
    whole = mixup(PIXELS, LABELS, step)
    halves = [mixup(PIXELS[part], LABELS[part], step) for part in (slice(0, 2), slice(2, 4))]
    for index in (0, 1):
        assert torch.equal(whole[index], torch.cat([half[index] for half in halves]))


def test_inputs_are_not_modified_and_without_mixing_targets_are_only_smoothed():
    original = PIXELS.clone()
    for step in range(5):
        Mixup(3)(PIXELS, LABELS, step)
    assert torch.equal(PIXELS, original)
    pixels, targets = Mixup(3, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.3)(PIXELS, LABELS, 0)
    assert torch.equal(pixels, PIXELS)
    torch.testing.assert_close(targets[0], torch.tensor([0.1, 0.1, 0.8]))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="^batch_size: 3 is odd, but mixup mixes pairs of images"):
        Mixup(3)(PIXELS[:3], LABELS[:3], 0)
    with pytest.raises(ValueError, match="^cutmix_alpha: -1 must not be negative"):
        Mixup(3, cutmix_alpha=-1)
    with pytest.raises(ValueError, match=r"^switch_prob: 1.5 must be between 0 and 1"):
        Mixup(3, switch_prob=1.5)
