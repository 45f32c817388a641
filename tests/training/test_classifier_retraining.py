"""cRT and LWS: class-balanced batches, a frozen backbone, scales that are folded into a native classifier."""

import collections

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from helpers.tiny_models import save_tiny, tiny
from helpers.training import QUIET, finetune_arguments, log_lines, same_weights, stop_at
from livt_hf.data.loader import class_balanced_keys
from livt_hf.evaluation.prior_shift import assumed_log_prior
from livt_hf.prior import ClassPrior
from livt_hf.training.classifier_retraining import fold_scales, scaled_layers, train_classifier_only
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")

LABELS = np.array([0] * 30 + [1] * 6 + [2] * 3 + [3])


def test_each_class_has_the_same_share_and_runs_through_its_images():
    keys = class_balanced_keys(LABELS, seed=1, epoch=5)
    assert collections.Counter(LABELS[index] for _, index in keys) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert len(set(keys)) == len(keys)  # a repeated image has another augmentation
    assert collections.Counter(index for _, index in keys if LABELS[index] == 2).most_common()[-1][1] == 3
    assert {epoch & 0xFFFFFFFF for epoch, _ in keys} == {5}
    assert keys == class_balanced_keys(LABELS, 1, 5)
    assert keys != class_balanced_keys(LABELS, 1, 6)
    assert keys != class_balanced_keys(LABELS, 2, 5)


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_scales_are_folded_with_the_same_logits(family):
    model = tiny(family, 4).eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(pixels).logits
    train_classifier_only(model, "lws")
    assert [tuple(p.shape) for p in model.parameters() if p.requires_grad] == [(4,)]
    scales = torch.tensor([0.5, 1.0, 2.0, 3.0])
    next(iter(scaled_layers(model).values())).scales.data.copy_(scales)
    torch.testing.assert_close(model(pixels).logits, before * scales)
    fold_scales(model)
    assert scaled_layers(model) == {}
    torch.testing.assert_close(model(pixels).logits, before * scales)


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_only_the_classifier_changes_and_a_resume_is_bit_identical(method, tmp_path, monkeypatch):
    start = save_tiny("swin", tmp_path / "start")
    options = {"pretrained": str(start), "image_size": None, "stage": "classifier", "classifier_method": method}
    options |= {"loss": "ce", "max_steps": 6, "save_every": 3, "batch_size": 16, "mixup": 0.0, "cutmix": 0.0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(finetune_arguments(whole, **options), QUIET)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert finetune(finetune_arguments(stopped, **options), QUIET) is None
    finetune(finetune_arguments(stopped, **options), QUIET)
    assert same_weights(whole, stopped)
    assert log_lines(whole) == log_lines(stopped)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, whole))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed - {"classifier.bias"} == {"classifier.weight"}
    ratio = after["classifier.weight"] / before["classifier.weight"]  # (C, D)
    is_scaled = bool((ratio - ratio[:, :1]).abs().max() < 1e-4)
    assert is_scaled == (method == "lws")
    card = (whole / "README.md").read_text()
    assert "the trained classifier start; only its last layer was retrained, on class-balanced batches" in card
    assert "Its probabilities assume a uniform class prior." in card
    config = AutoConfig.from_pretrained(whole)  # uniform, whatever the prior of the training set
    assert assumed_log_prior(config, ClassPrior(config.class_counts)).tolist() == [0.0] * 10


def test_what_the_stage_cannot_start_from_is_named(tmp_path):
    with pytest.raises(ValueError, match="loss: bal_bce would balance the class-balanced batches of --stage"):
        finetune_arguments(tmp_path, stage="classifier", pretrained="x")
    with pytest.raises(ValueError, match="stage: classifier retrains the last layer of a trained model; name it with"):
        finetune_arguments(tmp_path, stage="classifier", loss="ce")
