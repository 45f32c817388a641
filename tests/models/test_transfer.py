"""Any image classifier as a start: checkpoints of other classes or sizes, the whole fine-tuning."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor, pipeline

from helpers import tiny_models
from helpers.tiny_models import FAMILIES, save_tiny, tiny
from helpers.training import QUIET, finetune_arguments, log_lines
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.models.loading import classifier_layers
from livt_hf.models.transfer import load_pretrained_classifier, saved_image_size, saved_statistics
from livt_hf.training.classifier import build_classifier
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")

DIGITS = {str(digit): count for digit, count in enumerate((120, 78, 50, 33, 21, 14, 9, 6, 4, 2))}
OPTIONS = {"mixup": 0.8, "max_steps": 6, "save_every": 3, "logging_steps": 2, "batch_size": 16, "drop_path": 0.2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family, with a classifier of 3 classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: save_tiny(family, folder / family, num_labels=3) for family in tiny_models.CLASSES}


# The classifier of a checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_other_classes_need_the_option_and_get_a_new_classifier(family, checkpoints):
    with pytest.raises(
        ValueError, match=r"other classes than the 10 of the dataset; give --ignore_mismatched_classifier"
    ):
        load_pretrained_classifier(str(checkpoints[family]), DIGITS)
    model = load_pretrained_classifier(str(checkpoints[family]), DIGITS, ignore_mismatched_classifier=True)
    for layer in classifier_layers(model).values():
        assert layer.weight.shape[0] == 10
        assert 0 < layer.weight.abs().max() < 1e-4
        assert layer.bias.abs().max() == 0
    before, heads = tiny(family, 3).state_dict(), classifier_layers(model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in heads}
    assert len(kept) == len(before) - 2 * len(heads)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_the_same_classes_in_another_order_keep_their_rows(family, tmp_path):
    names = {0: "n00000003 cat", 1: "n00000001 ant", 2: "n00000002 bee"}
    path = str(save_tiny(family, tmp_path, 3, id2label=names, label2id={name: i for i, name in names.items()}))
    model = load_pretrained_classifier(path, {"n00000001": 5, "n00000002": 4, "n00000003": 3}).eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = tiny(family, 3).eval()(pixels).logits[:, [1, 2, 0]]
    torch.testing.assert_close(model(pixels).logits, expected)
    assert list(model.config.id2label.values()) == ["n00000001", "n00000002", "n00000003"]


def test_the_same_number_of_other_classes_is_a_mismatch(tmp_path):
    path = str(save_tiny("vit", tmp_path, 3, id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2}))
    counts = {"a": 3, "b": 2, "c": 1}
    with pytest.raises(ValueError, match="was trained on other classes than the 3 of the dataset"):
        load_pretrained_classifier(path, counts)
    model = load_pretrained_classifier(path, counts, ignore_mismatched_classifier=True)
    assert model.classifier.weight.abs().max() < 1e-4


def test_a_backbone_without_a_classifier_gets_one_without_the_option(tmp_path):
    tiny("dinov2").dinov2.save_pretrained(tmp_path)
    model = load_pretrained_classifier(str(tmp_path), DIGITS)
    assert model.classifier.weight.shape == (10, 32)
    assert torch.equal(model.dinov2.layernorm.weight, tiny("dinov2").dinov2.layernorm.weight)
    assert not model.dinov2.embeddings.mask_token.requires_grad


def test_missing_weights_are_named(tmp_path, checkpoints):
    from safetensors.torch import save_file

    weights = load_file(checkpoints["vit"] / "model.safetensors")
    dropped = next(name for name in weights if name.endswith("0.layernorm_after.weight"))
    del weights[dropped]
    (tmp_path / "config.json").write_text((checkpoints["vit"] / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"image classifier: it lacks the weights vit\.layers\.0\.layernorm_after\.weight; give"
    ):
        load_pretrained_classifier(str(tmp_path), {"a": 3, "b": 2, "c": 1})


def test_a_model_of_another_kind_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="cannot be loaded as an image classifier: it is a 'bert' model; give"):
        load_pretrained_classifier(str(tmp_path), DIGITS)


# Image size and statistics


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "timm"])
def test_positions_are_interpolated_to_another_size(family, tmp_path, checkpoints):
    """The native reload takes the other size as it is; the CLS token's position stays."""
    options = {"image_size": 12, "ignore_mismatched_classifier": True}
    model = load_pretrained_classifier(str(checkpoints[family]), DIGITS, **options)
    assert model.config.image_size == 12
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded(pixels).logits, model.eval()(pixels).logits)
    name = "timm_model.pos_embed" if family == "timm" else f"{family}.embeddings.position_embeddings"
    before, after = tiny(family, 3).state_dict()[name], model.state_dict()[name]
    leading = before.shape[1] - 16
    assert after.shape == (1, leading + 36, 16)
    assert torch.equal(after[:, :leading], before[:, :leading])
    if family != "timm":  # timm antialiases
        grid = before[:, leading:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
        torch.testing.assert_close(after[:, leading:], grid.flatten(2).transpose(1, 2))


def test_weights_tied_to_a_size_are_named(checkpoints):
    with pytest.raises(
        ValueError, match=r"image_size: 12 does not fit .*relative_position_bias_table of the pretrained model"
    ):
        load_pretrained_classifier(str(checkpoints["beit"]), DIGITS, image_size=12, ignore_mismatched_classifier=True)


def test_size_and_statistics_are_those_of_the_saved_image_processor(tmp_path):
    path = str(save_tiny("convnext", tmp_path))
    config = tiny_models.ConvNextConfig.from_pretrained(path)
    assert (saved_image_size(path, config), saved_statistics(path)) == (8, None)
    ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        path
    )
    assert (saved_image_size(path, config), saved_statistics(path)) == (24, ([0.5] * 3, [0.25] * 3))
    assert load_pretrained_classifier(path, DIGITS).config.image_size == 24


@pytest.mark.parametrize(("drop_path", "told"), [(0.0, False), (0.1, False), (0.2, True)])
def test_drop_path_without_effect_is_told_if_it_was_asked_for(drop_path, told, checkpoints, tmp_path, caplog):
    """0.1 is the default."""
    caplog.set_level("INFO")
    args = finetune_arguments(tmp_path, pretrained=str(checkpoints["vit"]), image_size=None, drop_path=drop_path)
    args.ignore_mismatched_classifier = True
    build_classifier(args, DIGITS, args.shot_groups())
    assert ("--drop_path 0.2 has no effect" in caplog.text) == told
    assert ("drop_path" in caplog.text) == told


# The whole fine-tuning


@pytest.mark.parametrize("family", FAMILIES)
def test_finetune_trains_saves_and_resumes_bit_identically(family, checkpoints, tmp_path, monkeypatch, capsys):
    """Weights after a stop and a resume equal those of the whole run, and the folder loads natively."""
    options = {**OPTIONS, "pretrained": str(checkpoints[family]), "image_size": None}
    options |= {"ignore_mismatched_classifier": True}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = finetune(finetune_arguments(whole, **options), QUIET)
    assert ("does not have it; --drop_path 0.2 has no effect" in capsys.readouterr().out) == (family in ("vit", "deit"))

    optimizer_step, steps = torch.optim.AdamW.step, []

    def step_and_signal(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return optimizer_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_signal)
    assert finetune(finetune_arguments(stopped, **options), QUIET) is None
    monkeypatch.setattr(torch.optim.AdamW, "step", optimizer_step)
    finetune(finetune_arguments(stopped, **options), QUIET)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert log_lines(whole) == log_lines(stopped)

    model = AutoModelForImageClassification.from_pretrained(whole).eval()
    assert type(model) is tiny_models.CLASSES[family][0]
    splits = load_long_tailed("digits")
    assert model.config.class_counts == class_counts(splits["train"])
    assert model.config.pretrained == checkpoints[family].name
    assert AutoImageProcessor.from_pretrained(whole).crop_size == {"height": 8, "width": 8}
    classify = pipeline("image-classification", str(whole))
    images = [Image.fromarray((torch.rand(3, 8, 8).permute(1, 2, 0) * 255).byte().numpy())]
    assert {prediction["label"] for prediction in classify(images, top_k=10)[0]} == set(DIGITS)
    card = (whole / "README.md").read_text()
    assert f"`{type(model).__name__}`" in card
    assert results["pretrained"] == checkpoints[family].name


def test_the_loss_is_that_of_the_logits_for_soft_targets(checkpoints, tmp_path):
    """A step of the trainer on mixed images = build_loss on the model's logits; the model sees no labels."""
    options = {**OPTIONS, "max_steps": 1, "logging_steps": 1, "drop_path": 0.0, "ignore_mismatched_classifier": True}
    args = finetune_arguments(tmp_path, pretrained=str(checkpoints["convnext"]), image_size=None, **options)
    finetune(args, QUIET)
    logged = next(line["loss"] for line in log_lines(tmp_path) if "loss" in line)
    # All logits of the new classifier are ~ 0: the loss is that of the biases alone.
    from livt_hf.losses import build_loss
    from livt_hf.prior import ClassPrior

    counts = class_counts(load_long_tailed("digits")["train"])
    targets = torch.full((1, 10), 0.1)
    bias = torch.from_numpy(ClassPrior(counts).log_odds)
    constant = torch.nn.functional.softplus(bias).sum().item()
    assert build_loss("bal_bce", counts)(torch.zeros(1, 10), targets).item() == pytest.approx(
        constant - bias.mean().item(), rel=1e-6
    )
    assert constant < logged < constant - bias.min().item()
