"""Layer-wise decay and schedule against the official numbers; every trainable parameter in exactly one group."""

import json
import re

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from helpers import tiny_models
from helpers.paths import FIXTURES
from helpers.tiny_models import tiny
from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.optimization import (
    adamw,
    layer_ids,
    learning_rate,
    names_without_weight_decay,
    parameter_groups,
    schedule_length,
    warmup_cosine,
)

LAYER_DECAY = json.loads((FIXTURES / "layer_decay.json").read_text())
SCHEDULES = json.loads((FIXTURES / "lr_schedule.json").read_text())
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": LAYER_DECAY["depth"],
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


def classifier() -> ViTForBalancedClassification:
    return ViTForBalancedClassification(LivtConfig(**SIZES, **config_for_classes({"a": 3, "b": 2, "c": 1})))


def autoencoder() -> LivtMAEForPreTraining:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return LivtMAEForPreTraining(LivtMAEConfig(**SIZES, **decoder, decoder_intermediate_size=32))


# timm name -> the names here; {0} is the block.
OFFICIAL_NAMES = {
    "cls_token": ["beit.embeddings.cls_token"],
    "pos_embed": ["beit.embeddings.position_embeddings"],
    "patch_embed.proj.weight": ["beit.embeddings.patch_embeddings.projection.weight"],
    "patch_embed.proj.bias": ["beit.embeddings.patch_embeddings.projection.bias"],
    "norm1": ["beit.layers.{0}.layernorm_before"],
    "norm2": ["beit.layers.{0}.layernorm_after"],
    "attn.qkv.weight": [f"beit.layers.{{0}}.attention.{part}_proj.weight" for part in "qkv"],
    "attn.qkv.bias": [f"beit.layers.{{0}}.attention.{part}_proj.bias" for part in "qv"],  # no key bias
    "attn.proj": ["beit.layers.{0}.attention.o_proj"],
    "mlp.fc1": ["beit.layers.{0}.mlp.fc1"],
    "mlp.fc2": ["beit.layers.{0}.mlp.fc2"],
    "fc_norm": ["beit.pooler.layernorm"],
    "head": ["classifier"],
}


def our_names(official: str) -> list[str]:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", official)
    block, name = (match[1], match[2]) if match else ("", official)
    stem, _, kind = name.rpartition(".")
    names = OFFICIAL_NAMES.get(name) or [f"{ours}.{kind}" for ours in OFFICIAL_NAMES[stem]]
    return [ours.format(block) for ours in names]


def settings_by_name(model: nn.Module, groups: list[dict]) -> dict[str, list[float]]:
    """``{parameter name: [lr scale, weight decay]}``; a parameter in two groups fails."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings: dict[str, list[float]] = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in settings, f"{name} is in two groups"
            settings[name] = [group["lr_scale"], group["weight_decay"]]
    return settings


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_each_parameter_has_the_official_rate_and_decay():
    model = classifier()
    groups = parameter_groups(model, LAYER_DECAY["weight_decay"], LAYER_DECAY["layer_decay"])
    expected = {ours: values for official, values in LAYER_DECAY["groups"].items() for ours in our_names(official)}
    assert settings_by_name(model, groups) == expected
    assert set(expected) == trainable(model)


def test_without_layer_decay_there_are_two_groups():
    model = classifier()
    groups = parameter_groups(model, 0.05)
    assert sorted((group["lr_scale"], group["weight_decay"]) for group in groups) == [(1.0, 0.0), (1.0, 0.05)]
    settings = settings_by_name(model, groups)
    assert set(settings) == trainable(model)
    decayed = {name for name, (_, decay) in settings.items() if decay}
    official = {ours for name, (_, decay) in LAYER_DECAY["groups"].items() if decay for ours in our_names(name)}
    assert decayed == official


def test_the_autoencoder_decays_all_but_one_dimensional_parameters():
    """Tokens of shape (1, 1, D) are decayed, as by timm's `add_weight_decay`; the frozen positions are in no group."""
    model = autoencoder()
    settings = settings_by_name(model, parameter_groups(model, 0.05))
    assert set(settings) == trainable(model)
    assert not {name for name in settings if "position_embeddings" in name or "pos_embed" in name}
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    for name, (scale, decay) in settings.items():
        is_weight = shapes[name] > 1
        assert (scale, decay) == (1.0, 0.05 if is_weight else 0.0), name
        assert not (is_weight and name.endswith(".bias"))
    assert settings["vit.embeddings.cls_token"] == settings["decoder.mask_token"] == [1.0, 0.05]


def test_a_frozen_parameter_is_in_no_group():
    model = classifier()
    model.beit.requires_grad_(False)
    settings = settings_by_name(model, parameter_groups(model, 0.05, layer_decay=0.75))
    assert settings == {"classifier.weight": [1.0, 0.05], "classifier.bias": [1.0, 0.0]}


def test_layer_decay_needs_blocks():
    with pytest.raises(ValueError, match=r"layer_decay: no blocks were found in Linear; use --layer_decay 1\.0"):
        parameter_groups(nn.Linear(2, 2), 0.05, layer_decay=0.75)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"lr={schedule['lr']}")
def test_learning_rate_at_every_official_point(schedule):
    for epoch, expected in schedule["points"]:
        rate = learning_rate(epoch, schedule["lr"], schedule["min_lr"], schedule["warmup_epochs"], schedule["epochs"])
        assert rate == pytest.approx(expected, rel=1e-9, abs=0), epoch


def test_learning_rate_by_hand():
    """Half way up, at the peak, half way down, at the end and after it; no warmup; only warmup."""
    rates = [learning_rate(epoch, 1.0, 0.2, 10, 30) for epoch in (5, 10, 20, 30, 31)]
    assert rates == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2], rel=1e-12)
    assert learning_rate(0, 1.0, 0.0, 0, 8) == 1.0
    assert learning_rate(4, 1.0, 0.0, 8, 8) == 0.5


@pytest.mark.parametrize("epochs", [4, 3.6])
def test_the_scheduler_scales_every_group_at_every_step(epochs):
    model, steps_per_epoch, peak_lr, min_lr, warmup_epochs = classifier(), 5, 0.01, 0.001, 1.5
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    optimizer = adamw(groups, peak_lr, (0.9, 0.99))
    scheduler = warmup_cosine(optimizer, steps_per_epoch, peak_lr, min_lr, warmup_epochs, epochs)
    scales = {1.0, 0.5, 0.25, 0.125, 0.0625}  # head, blocks 2, 1 and 0, embeddings
    assert {group["lr_scale"] for group in optimizer.param_groups} == scales
    for step in range(round(epochs * steps_per_epoch) + 1):
        expected = learning_rate(step / steps_per_epoch, peak_lr, min_lr, warmup_epochs, epochs)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group["lr_scale"], rel=1e-12, abs=0), step
        optimizer.step()
        scheduler.step()
    assert expected == pytest.approx(min_lr)


def test_one_adamw_step_moves_each_parameter_by_its_rate_and_decay():
    """With gradients of 1, AdamW's first step is lr * (1 + weight decay * value), whatever the betas."""
    model = classifier()
    optimizer = adamw(parameter_groups(model, 0.05, layer_decay=0.5), 0.01, (0.9, 0.99))
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.99), 1e-8)
    settings = settings_by_name(model, optimizer.param_groups)
    before = {}
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.fill_(2.0)
        parameter.grad = torch.ones_like(parameter)
        before[name] = parameter.detach().clone()
    optimizer.step()
    for name, parameter in model.named_parameters():
        scale, decay = settings[name]
        expected = before[name] - 0.01 * scale * (1 + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=5e-7, msg=name)


def test_schedule_length_by_hand():
    assert schedule_length(10, 800, 40, None) == (8000, 800, 40)
    assert schedule_length(3, 2.5, 0.5, None) == (8, 2.5, 0.5)  # 7.5 steps: the last one is made


@pytest.mark.parametrize(("steps_per_epoch", "epochs", "steps"), [(100, 0.07, 7), (100, 1.1, 110), (25, 4.4, 110)])
def test_integer_numbers_of_steps_are_not_rounded_up(steps_per_epoch, epochs, steps):
    """0.07 * 100 is 7.000000000000001 in floating point."""
    assert schedule_length(steps_per_epoch, epochs, 0, None)[0] == steps


def test_max_steps_is_the_length_of_the_schedule_and_keeps_the_fraction_of_the_warmup():
    """40 of 800 epochs are 5 %: of 100 steps, 5; of an epoch of 10 steps, half."""
    assert schedule_length(10, 800, 40, 100) == (100, 10.0, 0.5)
    steps, epochs, warmup_epochs = schedule_length(7, 100, 10, 35)
    assert (steps, epochs, warmup_epochs) == (35, 5.0, pytest.approx(0.5))
    rates = [learning_rate(step / 7, 1.0, 0.0, warmup_epochs, epochs) for step in range(36)]
    assert max(rates) <= 1.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[3] == pytest.approx(3 / 3.5)  # 3 of the 3.5 steps of warm-up


# Layers of any image classifier


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
