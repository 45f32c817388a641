"""The classifier before training: class means computed by hand, the stated spread, zero; one pass, not on a resume."""

import json

import numpy as np
import pytest
import torch

from helpers.tiny_models import save_tiny, tiny
from helpers.training import QUIET, finetune_arguments, log_lines, same_weights, stop_at
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.long_tail import dataset_labels
from livt_hf.data.transforms import image_processor
from livt_hf.evaluation.features import split_features
from livt_hf.models.configuration_livt import store_class_counts
from livt_hf.training import classifier_init
from livt_hf.training.classifier_init import (
    IMAGES_PER_CLASS,
    SPREAD,
    class_mean_layer,
    init_classifier,
    zero_classifier,
)
from livt_hf.training.data import load_images
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")

PROCESSOR = image_processor(8, 1.0, [0.3] * 3, [0.4] * 3)


def test_rows_are_centered_normalized_class_means_with_the_stated_spread():
    """Means (3, 4), (4, 3) and (0, 2) of lengths 5, 5 and 2."""
    features = np.array([[2, 4], [4, 4], [4, 3], [0, 1], [0, 3]], dtype=np.float32)
    labels = np.array([0, 0, 1, 2, 2])
    layer = class_mean_layer(features, labels, 3, spread=2.0)
    rows = np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    rows -= rows.mean(axis=0)
    weight = layer.weight.detach().numpy()
    np.testing.assert_allclose(weight / weight[0, 0], rows / rows[0, 0], rtol=1e-5)
    logits = layer(torch.from_numpy(features)).detach().numpy()
    assert logits.std(axis=1).mean() == pytest.approx(2.0, rel=1e-5)
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-5)
    assert not layer.bias.any()


def test_a_class_without_an_image_is_an_error():
    with pytest.raises(ValueError, match="classifier_init: class 1 has no readable training image"):
        class_mean_layer(np.ones((2, 2), dtype=np.float32), np.array([0, 2]), 3)


def test_features_that_do_not_differ_give_a_zero_layer():
    layer = class_mean_layer(np.ones((2, 2), dtype=np.float32), np.array([0, 1]), 2)
    assert not layer.weight.any()


@pytest.mark.parametrize("family", ["vit", "deit", "timm"])
def test_zero_is_zero_for_every_classifier(family):
    model = tiny(family).eval()
    zero_classifier(model)
    assert not model(torch.randn(2, 3, 8, 8)).logits.any()


@pytest.mark.parametrize("validation", [True, False])
def test_class_means_of_a_seeded_part_become_the_classifier(validation, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(classifier_init, "IMAGES_PER_CLASS", 5)
    caplog.set_level("INFO")
    args = finetune_arguments(tmp_path, classifier_init="class_mean", pretrained="x", seed=3)
    images = load_images(args, 3, (1, 0), evaluation=True)
    if not validation:
        del images.splits["validation"]
    model = tiny("vit")
    store_class_counts(model.config, images.class_counts)
    init_classifier(args, model, images, PROCESSOR)

    train = images.splits["train"]
    labels = dataset_labels(train)
    random = np.random.RandomState(3)  # the order of `long_tailed_indices`
    kept = []
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        random.shuffle(rows)
        kept += rows[:5].tolist()
    kept = sorted(kept)
    features = split_features(model, train.select(kept), PROCESSOR, cache=False)
    layer = class_mean_layer(features, labels[kept], 10)
    torch.testing.assert_close(model.classifier.weight, layer.weight)
    torch.testing.assert_close(model.classifier.bias, layer.bias)
    assert layer(torch.from_numpy(features)).std(dim=1, unbiased=False).mean().item() == pytest.approx(SPREAD, rel=1e-4)
    split = images.splits["validation"] if validation else train.select(kept)
    found = layer(torch.from_numpy(split_features(model, split, PROCESSOR, cache=False))).argmax(dim=1).numpy()
    accuracy = 100 * (found == dataset_labels(split)).mean()
    which = "the validation split" if validation else "the images that it is made of"
    assert f"accuracy of class means, before training, on {which}: {accuracy:.1f} %" in caplog.text


def test_a_stream_has_no_class_means(tmp_path):
    args = finetune_arguments(tmp_path, classifier_init="class_mean", streaming=True)
    with pytest.raises(ValueError, match="classifier_init: class_mean reads images of every class first"):
        init_classifier(args, tiny("vit"), None, PROCESSOR)


def test_a_run_starts_from_class_means_once_and_resumes_bit_for_bit(tmp_path, monkeypatch, caplog):
    """Also the moving average begins there."""
    caplog.set_level("INFO")
    start = save_tiny("vit", tmp_path / "start", num_labels=3)  # other classes: the classifier is replaced
    options = {"pretrained": str(start), "image_size": None, "classifier_init": "class_mean", "ema": 0.5}
    options |= {"max_steps": 6, "save_every": 3, "batch_size": 16, "rand_augment": "none", "warmup_epochs": 0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(finetune_arguments(whole, **options), QUIET)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert finetune(finetune_arguments(stopped, **options), QUIET) is None
    assert caplog.text.count("accuracy of class means, before training") == 2
    finetune(finetune_arguments(stopped, **options), QUIET)
    assert caplog.text.count("accuracy of class means, before training") == 2
    assert same_weights(whole, stopped)
    assert log_lines(whole) == log_lines(stopped)
    assert json.loads((whole / "run.json").read_text())["arguments"]["classifier_init"] == "class_mean"
    with pytest.raises(ValueError, match="different options: classifier_init: class_mean -> zero"):
        finetune(finetune_arguments(whole, **{**options, "classifier_init": "zero", "max_steps": 9}), QUIET)


def test_the_first_loss_is_that_of_the_class_means(tmp_path):
    """With a learning rate of almost 0 the saved classifier is the one that training started from."""
    start = save_tiny("vit", tmp_path / "start", num_labels=10)
    options = {"pretrained": str(start), "image_size": None, "classifier_init": "class_mean", "max_steps": 2}
    options |= {"base_lr": 1e-12, "weight_decay": 0.0, "warmup_epochs": 0, "ignore_mismatched_classifier": True}
    finetune(finetune_arguments(tmp_path / "out", **options), QUIET)
    from livt_hf.models.loading import load_classifier

    model, processor = load_classifier(tmp_path / "out")
    train = load_long_tailed("digits")["train"]
    assert max(class_counts(train).values()) > IMAGES_PER_CLASS
    chosen = np.sort(classifier_init.balanced_indices(dataset_labels(train), IMAGES_PER_CLASS, 0))
    features = split_features(model, train.select(chosen), processor, cache=False)
    layer = class_mean_layer(features, dataset_labels(train)[chosen], 10)
    torch.testing.assert_close(model.classifier.weight, layer.weight, atol=1e-4, rtol=1e-3)
