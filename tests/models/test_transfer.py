"""Any image classifier as a start: layer decay, checkpoints of other classes or sizes, the whole fine-tuning."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor, pipeline

from helpers import tiny_models
from helpers.tiny_models import FAMILIES, save_tiny, tiny
from helpers.training import QUIET, finetune_arguments, log_lines
from livt_hf import LivtConfig, ViTForBalancedClassification, store_class_counts
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.models.loading import classifier_layers
from livt_hf.models.transfer import load_pretrained_classifier, saved_image_size, saved_statistics
from livt_hf.optimization import layer_ids, names_without_weight_decay, parameter_groups
from livt_hf.training.finetuning import finetune

DIGITS = {str(digit): count for digit, count in enumerate((120, 78, 50, 33, 21, 14, 9, 6, 4, 2))}
OPTIONS = {"mixup": 0.8, "max_steps": 6, "save_every": 3, "logging_steps": 2, "batch_size": 16, "drop_path": 0.2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family, with a classifier of 3 classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: save_tiny(family, folder / family, num_labels=3) for family in tiny_models.CLASSES}


# Layer decay


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("vit", {r"embeddings": 0, r"layers\.0": 1, r"layers\.1": 2, r"^vit\.layernorm|^classifier": 3}),
        ("deit", {r"embeddings": 0, r"layers\.0": 1, r"layers\.1": 2, r"^deit\.layernorm|^classifier": 3}),
        ("beit", {r"embeddings": 0, r"layers\.0": 1, r"layers\.1": 2, r"pooler|^classifier": 3}),
        ("dinov2", {r"embeddings": 0, r"layer\.0": 1, r"layer\.1": 2, r"^dinov2\.layernorm|^classifier": 3}),
        (
            "swin",
            {
                r"embeddings": 0,
                r"layers\.0\.blocks\.0": 1,
                r"layers\.0\.downsample|layers\.1\.blocks\.0": 2,
                r"layers\.1\.blocks\.1": 3,
                r"^swin\.layernorm|^classifier": 4,
            },
        ),
        (
            "convnext",
            {
                r"embeddings": 0,
                r"stages\.0\.layers\.0": 1,
                r"stages\.1\.(downsampling_layer|layers\.0)": 2,
                r"stages\.1\.layers\.1": 3,
                r"^convnext\.layernorm|^classifier": 4,
            },
        ),
    ],
)
def test_layers_by_hand(family, expected):
    layers = layer_ids(tiny(family))
    for name, layer in layers.items():
        assert [value for pattern, value in expected.items() if re.search(pattern, name)] == [layer], name
    assert set(layers.values()) == set(expected.values())


@pytest.mark.parametrize("family", ["timm", "timm_convnext", "timm_swin"])
def test_layers_and_decay_are_those_of_timm_except_for_the_final_norm(family):
    model = tiny(family)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def settings(groups):
        return {
            names[id(parameter)]: (pytest.approx(group["lr_scale"]), group["weight_decay"])
            for group in groups
            for parameter in group["params"]
        }

    exempt = model.timm_model.no_weight_decay() if hasattr(model.timm_model, "no_weight_decay") else ()
    expected = settings(param_groups_layer_decay(model.timm_model, 0.05, exempt, layer_decay=0.75))
    found = settings(parameter_groups(model, 0.05, layer_decay=0.75))
    different = {name for name in expected if found[name] != expected[name]}
    assert {name.rsplit(".", 1)[0] for name in different} <= {"timm_model.norm", "timm_model.head.norm"}
    assert found.keys() == expected.keys()


def test_the_general_rule_finds_the_layers_that_the_livt_model_declares():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForBalancedClassification(LivtConfig(**sizes, image_size=8, patch_size=4))
    declared, without_decay = layer_ids(model), names_without_weight_decay(model)
    model.__class__ = model.__class__.__base__  # a native BEiT, which declares nothing
    assert layer_ids(model) == declared
    assert names_without_weight_decay(model) == without_decay


def test_beits_shared_position_bias_is_on_top():
    config = {**tiny_models.CLASSES["beit"][2], "use_relative_position_bias": False}
    model = tiny_models.BeitForImageClassification(
        tiny_models.BeitConfig(**config, use_shared_relative_position_bias=True, num_labels=3)
    )
    assert layer_ids(model)["beit.shared_position_bias.relative_position_bias_table"] == 3


def test_positions_and_tokens_are_not_decayed():
    names = {family: names_without_weight_decay(tiny(family)) for family in ("deit", "swin", "convnext")}
    tokens = ("cls_token", "distillation_token", "position_embeddings")
    assert names["deit"] == {f"deit.embeddings.{name}" for name in tokens}
    assert len(names["swin"]) == 3
    assert all(name.endswith("relative_position_bias_table") for name in names["swin"])
    assert names["convnext"] == set()


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


# store_class_counts


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_class_counts_survive_the_round_trip_in_label_order(family, tmp_path):
    model = tiny(family, 3)
    store_class_counts(model.config, {"zebra": 9, "ant": 4, "moth": 1}, loss="bal_ce", tau=0.5)
    model.save_pretrained(tmp_path)
    config = AutoModelForImageClassification.from_pretrained(tmp_path).config
    assert config.id2label == {0: "zebra", 1: "ant", 2: "moth"}
    assert config.class_counts == {"zebra": 9, "ant": 4, "moth": 1}
    assert (config.loss, config.tau, config.shot_groups) == ("bal_ce", 0.5, {"many": 100, "few": 20, "by": "count"})


def test_class_counts_must_be_those_of_the_models_classes():
    config = tiny_models.ViTConfig(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(ValueError, match="class_counts: 3 classes, but the model has 2; load it with num_labels=3"):
        store_class_counts(config, [3, 2, 1])
    with pytest.raises(ValueError, match="only in id2label: 'b'; only in class_counts: 'c'"):
        store_class_counts(config, {"a": 1, "c": 1})
    with pytest.raises(ValueError, match="loss: 'bal_bc' is unknown"):
        store_class_counts(config, [3, 2], loss="bal_bc")
    store_class_counts(config, [3, 2])
    assert config.class_counts == {"a": 3, "b": 2}


# The whole fine-tuning


@pytest.mark.parametrize("family", FAMILIES)
def test_finetune_trains_saves_and_resumes_bit_identically(family, checkpoints, tmp_path, monkeypatch, capsys):
    """Weights after a stop and a resume equal those of the whole run, and the folder loads natively."""
    options = {**OPTIONS, "pretrained": str(checkpoints[family]), "image_size": None}
    options |= {"ignore_mismatched_classifier": True}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = finetune(finetune_arguments(whole, **options), QUIET)
    assert ("has none; --drop_path 0.2 has no effect" in capsys.readouterr().out) == (family in ("vit", "deit"))

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
    assert model.config.pretrained == str(checkpoints[family])
    assert AutoImageProcessor.from_pretrained(whole).crop_size == {"height": 8, "width": 8}
    classify = pipeline("image-classification", str(whole))
    images = [Image.fromarray((torch.rand(3, 8, 8).permute(1, 2, 0) * 255).byte().numpy())]
    assert {prediction["label"] for prediction in classify(images, top_k=10)[0]} == set(DIGITS)
    card = (whole / "README.md").read_text()
    assert f"`{type(model).__name__}`" in card
    assert results["pretrained"] == str(checkpoints[family])


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
