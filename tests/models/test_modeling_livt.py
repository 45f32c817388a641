"""The classifier: equal to the official one, complete mapping from a masked autoencoder, native round trip."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    BeitForImageClassification,
    Trainer,
    TrainingArguments,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from transformers.models.beit.modeling_beit import BeitLayer

from helpers.paths import FIXTURES
from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.conversion.key_map import key_map, to_native
from livt_hf.conversion.official import read_checkpoint
from livt_hf.losses import build_loss
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.modeling_livt import (
    NO_ENCODER_NORM,
    NO_KEY_BIAS,
    LivtLayer,
    add_kept,
    config_for_classes,
    interpolate_position_embeddings,
    map_encoder,
)

COUNTS = {"zebra": 50, "ant": 5, "mule": 20}
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 32,
    "patch_size": 4,
}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128,
}


def tiny_mae() -> LivtMAEForPreTraining:
    torch.manual_seed(0)
    return LivtMAEForPreTraining(LivtMAEConfig(**TINY, **DECODER))


def tiny_classifier(**fields) -> ViTForBalancedClassification:
    torch.manual_seed(0)
    return ViTForBalancedClassification(LivtConfig(**{**TINY, **config_for_classes(COUNTS), **fields}))


@pytest.mark.parametrize(("pooling", "mean_pooling"), [("global_pool", True), ("cls_token", False)])
def test_features_and_logits_equal_the_official_classifier(pooling, mean_pooling):
    official, _ = read_checkpoint(FIXTURES / f"livt_finetune_{pooling}.pth")
    outputs = load_file(FIXTURES / "official_outputs.safetensors")
    model = ViTForBalancedClassification(LivtConfig(**TINY, num_labels=12, use_mean_pooling=mean_pooling)).eval()
    weights, _ = to_native(official, key_map(model.config))
    model.load_state_dict(weights)  # strict: nothing is missing and nothing is left over
    with torch.no_grad():
        features = model.beit(outputs["pixel_values"]).pooler_output
        logits = model(outputs["pixel_values"]).logits
    torch.testing.assert_close(features, outputs[f"features_{pooling}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, outputs[f"logits_{pooling}"], rtol=1e-5, atol=1e-5)


def test_position_embeddings_are_interpolated_as_officially():
    official, _ = read_checkpoint(FIXTURES / "livt_finetune_global_pool.pth")
    expected = load_file(FIXTURES / "official_outputs.safetensors")["pos_embed_8to12"]
    torch.testing.assert_close(
        interpolate_position_embeddings(official["pos_embed"], 144), expected, rtol=1e-5, atol=1e-6
    )


def test_interpolation_keeps_the_cls_token_and_the_axes():
    """A ramp along the columns stays one along the columns, symmetric about its middle; rows likewise."""
    ramp = torch.arange(8.0).repeat(8, 1)  # grows along the columns only
    embeddings = torch.cat([torch.full((1, 1, 2), 7.0), torch.stack([ramp, ramp.T], -1).reshape(1, 64, 2)], dim=1)
    resized = interpolate_position_embeddings(embeddings, 256)
    assert torch.equal(resized[:, 0], embeddings[:, 0])
    grid = resized[0, 1:].reshape(16, 16, 2)
    columns, rows = grid[..., 0], grid[..., 1]
    torch.testing.assert_close(columns, columns[:1].expand(16, 16))
    torch.testing.assert_close(rows, columns.T)
    assert (columns[0].diff() > 0).all()
    torch.testing.assert_close(columns[0] + columns[0].flip(0), torch.full((16,), 7.0))


def test_every_tensor_of_both_sides_is_used_dropped_with_its_reason_or_new():
    encoder, model = tiny_mae().vit, tiny_classifier()
    weights, dropped = map_encoder(encoder.state_dict(), model.beit)
    new = set(model.state_dict()) - {f"beit.{name}" for name in weights}
    block = [f"layernorm_{place}.{kind}" for place in ("before", "after") for kind in ("weight", "bias")]
    block += [f"mlp.fc{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
    block += [f"attention.{part}_proj.{kind}" for part in "qvo" for kind in ("weight", "bias")]
    block += ["attention.k_proj.weight"]
    embeddings = ["cls_token", "position_embeddings", "patch_embeddings.projection.weight"]
    embeddings += ["patch_embeddings.projection.bias"]
    assert set(weights) == {f"layers.{i}.{name}" for i in range(3) for name in block} | {
        f"embeddings.{name}" for name in embeddings
    }
    assert dropped == {
        **{f"layers.{i}.attention.k_proj.bias": NO_KEY_BIAS for i in range(3)},
        "layernorm.weight": NO_ENCODER_NORM,
        "layernorm.bias": NO_ENCODER_NORM,
    }
    assert new == {"classifier.weight", "classifier.bias", "beit.pooler.layernorm.weight", "beit.pooler.layernorm.bias"}
    assert set(weights) | set(dropped) == set(encoder.state_dict())


def test_with_the_cls_token_the_encoder_norm_is_used():
    weights, dropped = map_encoder(tiny_mae().vit.state_dict(), tiny_classifier(use_mean_pooling=False).beit)
    assert {"layernorm.weight", "layernorm.bias"} <= set(weights)
    assert set(dropped.values()) == {NO_KEY_BIAS}


def test_the_encoder_computes_what_the_autoencoder_computes():
    """Also with key biases, which the classifier drops: they change no attention."""
    mae = tiny_mae().eval()
    with torch.no_grad():
        for parameter in mae.vit.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.5)
        model = ViTForBalancedClassification.from_mae(mae, COUNTS, use_mean_pooling=False).eval()
        images = torch.randn(2, 3, 32, 32)
        mae.config.mask_ratio = 0.0
        noise = torch.arange(64.0).repeat(2, 1)  # keeps the patches in their order
        expected = mae.vit(images, noise=noise).last_hidden_state
        torch.testing.assert_close(model.beit(images).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "upstream", "encoder", "folder", "encoder folder"])
def test_from_mae_takes_every_form_of_an_autoencoder(kind, tmp_path):
    mae = tiny_mae()
    mae.save_pretrained(tmp_path / "mae")
    mae.vit.save_pretrained(tmp_path / "encoder")
    source = {
        "ours": mae,
        "upstream": ViTMAEForPreTraining.from_pretrained(tmp_path / "mae"),
        "encoder": ViTMAEModel.from_pretrained(tmp_path / "mae"),
        "folder": str(tmp_path / "mae"),
        "encoder folder": tmp_path / "encoder",
    }[kind]
    model = ViTForBalancedClassification.from_mae(source, COUNTS, drop_path_rate=0.2, tau=1.05)
    expected, _ = map_encoder(mae.vit.state_dict(), model.beit)
    state = model.beit.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert model.config.ordered_class_counts() == COUNTS
    assert (model.config.tau, model.config.drop_path_rate) == (1.05, 0.2)
    assert model.config.pretrained == (Path(source).name if "folder" in kind else None)
    assert model.config.layer_norm_eps == mae.config.layer_norm_eps
    assert 1e-5 < model.classifier.weight.std().item() < 3e-5
    assert not model.classifier.bias.any()


def test_from_mae_at_another_image_size_interpolates_the_positions():
    mae = tiny_mae()
    model = ViTForBalancedClassification.from_mae(mae, COUNTS, image_size=48)
    expected = interpolate_position_embeddings(mae.vit.embeddings.position_embeddings, 144)
    assert torch.equal(model.beit.embeddings.position_embeddings, expected)
    assert model(torch.zeros(1, 3, 48, 48)).logits.shape == (1, 3)


def test_from_mae_names_what_does_not_fit(tmp_path):
    mae = tiny_mae()
    with pytest.raises(ValueError, match="patch_size: 8, but the pretrained encoder has 4; leave"):
        ViTForBalancedClassification.from_mae(mae, COUNTS, patch_size=8)
    with pytest.raises(ValueError, match="image_size: 33 is not divisible by patch_size 4"):
        ViTForBalancedClassification.from_mae(mae, COUNTS, image_size=33)
    with pytest.raises(ValueError, match="class 'ant' has count 0"):
        ViTForBalancedClassification.from_mae(mae, {**COUNTS, "ant": 0})
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded as a masked autoencoder: it is a 'beit' model; give"):
        ViTForBalancedClassification.from_mae(tmp_path, COUNTS)


def test_from_scratch_it_starts_with_positions_and_a_tiny_classifier():
    model = tiny_classifier()
    assert 0.015 < model.beit.embeddings.position_embeddings.std().item() < 0.025
    assert 1e-5 < model.classifier.weight.std().item() < 3e-5
    bound = (3 * 4 * 4) ** -0.5
    weight = model.beit.embeddings.patch_embeddings.projection.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("loss", ["ce", "bce", "bal_ce", "bal_bce"])
def test_forward_gives_the_loss_of_the_config_on_unadjusted_logits(loss):
    model = tiny_classifier(loss=loss, tau=1.05, label_smoothing=0.1).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    output = model(images, labels=labels)
    plain = BeitForImageClassification(model.config).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(output.logits, plain(images).logits)
    expected = build_loss(loss, COUNTS, 1.05, 0.1)(output.logits, labels)
    assert torch.equal(output.loss, expected)
    assert model(images).loss is None


def test_labels_without_class_counts_are_an_error():
    model = ViTForBalancedClassification(LivtConfig(**TINY, num_labels=3))
    with pytest.raises(ValueError, match="class_counts: the config has none"):
        model(torch.zeros(1, 3, 32, 32), labels=torch.tensor([0]))


def test_counts_that_do_not_match_the_label_names_are_listed():
    names = config_for_classes(COUNTS)
    names["class_counts"] = {"zebra": 50, "ant": 5, "donkey": 20}
    with pytest.raises(ValueError, match="only in id2label: 'mule'; only in class_counts: 'donkey'"):
        LivtConfig(**names)


def test_saved_folders_are_native_and_keep_everything(tmp_path):
    model = tiny_classifier(
        loss="bal_ce", tau=1.05, label_smoothing=0.1, shot_groups={"many": 1, "few": 1, "by": "rank"}
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BeitForImageClassification"]
    assert config["model_type"] == "beit"
    assert "auto_map" not in config
    again = ViTForBalancedClassification.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    # JSON sorts the counts by name; the label order is that of id2label.
    assert list(again.config.ordered_class_counts().items()) == list(COUNTS.items())
    assert (again.config.loss, again.config.tau, again.config.label_smoothing) == ("bal_ce", 1.05, 0.1)
    assert again.config.shot_groups == {"many": 1, "few": 1, "by": "rank"}


def test_plain_transformers_gives_the_same_logits_where_this_package_cannot_be_imported(tmp_path):
    model = tiny_classifier().eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
        images = torch.randn(2, 3, 32, 32)
        expected = model(images).logits
    model.save_pretrained(tmp_path)
    torch.save(images, tmp_path / "images.pt")
    code = """
import sys; sys.modules["livt_hf"] = None
import torch
from transformers import AutoModelForImageClassification
model, info = AutoModelForImageClassification.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
assert type(model).__name__ == "BeitForImageClassification"
torch.save(model.eval()(torch.load(sys.argv[1] + "/images.pt")).logits, sys.argv[1] + "/logits.pt")
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-6)


def test_a_checkpoint_saved_by_plain_transformers_comes_back(tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "ours")
    native = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    native.save_pretrained(tmp_path / "native")
    again = ViTForBalancedClassification.from_pretrained(tmp_path / "native")
    assert again.config.ordered_class_counts() == COUNTS


def test_a_stock_trainer_divides_the_loss_by_the_accumulation_steps(tmp_path):
    """Gradients of one batch of 4 = those of 2 accumulated batches of 2, with soft labels."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    labels = torch.softmax(torch.randn(4, 3), dim=1)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    weights = []
    for batch_size in (4, 2):
        model = tiny_classifier()
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model, args, train_dataset=data).train()
        weights.append(model.classifier.weight.detach().clone())
    before = tiny_classifier().classifier.weight
    assert (weights[0] - before).abs().max() > 1e-3
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_8142_class_names_survive(tmp_path):
    counts = {f"species {i}": 1 + i % 1000 for i in range(8142)}
    config = LivtConfig(**TINY, **config_for_classes(counts))
    config.save_pretrained(tmp_path)
    again = LivtConfig.from_pretrained(tmp_path)
    assert list(again.ordered_class_counts().items()) == list(counts.items())


def drop_path_layer(cls):
    config = LivtConfig(hidden_size=16, num_attention_heads=2, intermediate_size=32, attn_implementation="eager")
    torch.manual_seed(0)
    layer = BeitLayer(config, drop_path_rate=0.6).train()
    layer.__class__ = cls
    return layer


def test_drop_path_in_training_is_that_of_transformers():
    """The same samples are dropped, forward and backward, without the products that the layer saves."""
    results = []
    for cls in (LivtLayer, BeitLayer):
        layer = drop_path_layer(cls)
        tokens = torch.randn(24, 5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        torch.manual_seed(2)
        output = layer(tokens)
        output.square().sum().backward()
        results.append([output, tokens.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    untouched = (results[0][0] == tokens).all(dim=(1, 2))  # both branches dropped
    assert 0 < untouched.sum() < 24


def test_drop_path_under_autocast_keeps_a_float32_residual():
    """What is added is not rounded, and the gradient of the branch has its precision."""
    residual = torch.randn(32, 5, 16, requires_grad=True)
    branch = torch.randn(32, 5, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        output = add_kept(residual, branch, 0.6)
    torch.manual_seed(3)
    kept = torch.floor(0.6 + torch.rand(32, 1, 1, dtype=torch.bfloat16)).float()
    assert 0 < kept.sum() < 32
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, residual + branch.float() * kept / 0.6, rtol=1e-6, atol=1e-6)
    gradient = torch.randn(32, 5, 16)
    output.backward(gradient)
    assert torch.equal(residual.grad, gradient)
    assert branch.grad.dtype == torch.bfloat16
    torch.testing.assert_close(branch.grad, (gradient * kept / 0.6).bfloat16())


def test_layer_ids_go_from_the_embeddings_to_the_head():
    model = tiny_classifier()
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["beit.embeddings.cls_token"] == ids["beit.embeddings.patch_embeddings.projection.bias"] == 0
    assert ids["beit.layers.0.mlp.fc1.weight"] == 1
    assert ids["beit.layers.2.mlp.fc1.weight"] == 3
    assert ids["beit.pooler.layernorm.weight"] == ids["classifier.bias"] == 4 == model.num_layer_ids() - 1
    assert model.no_weight_decay() < set(ids)
