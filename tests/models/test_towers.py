"""Backbones without a classifier: the native classifier on each, its features, trainable parameters, other sizes."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForImageClassification, CLIPImageProcessor, CLIPVisionModel, SiglipVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from helpers.tiny_towers import AVAILABLE, VISION, native_class, save_tower, tiny_tower
from helpers.training import QUIET, finetune_arguments
from livt_hf.data import EvalTransform
from livt_hf.data.transforms import image_processor
from livt_hf.evaluation.adjust import adjust
from livt_hf.evaluation.predict import predict_images
from livt_hf.hub.upload import check_model_folder
from livt_hf.models.configuration_livt import store_class_counts
from livt_hf.models.loading import classifier_layers, enable_gradient_checkpointing
from livt_hf.models.towers import fixed_resolution, freeze_unused, vision_config
from livt_hf.models.transfer import load_pretrained_classifier, saved_image_size
from livt_hf.optimization import layer_ids, parameter_groups
from livt_hf.training.classifier import pixel_statistics
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered")

COUNTS = {"ant": 5, "bee": 4, "cat": 2}
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSIFIERS = [name for name in AVAILABLE if name != "vit_mae"]  # that one becomes a LivT


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folder of each backbone."""
    folder = tmp_path_factory.mktemp("towers")
    return {name: str(save_tower(name, folder / name)) for name in AVAILABLE}


def pooled(model: nn.Module, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    """The input of the classifier (B, D)."""
    found = []
    (layer,) = classifier_layers(model).values()
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    model.eval()(pixels)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_is_native_and_has_the_weights_of_the_backbone(name, towers):
    model = load_pretrained_classifier(towers[name], COUNTS)
    assert type(model) is native_class(name)
    assert model.config.image_size == 8
    kept, tower = dict(model.state_dict()), tiny_tower(name).state_dict()
    heads = classifier_layers(model)
    backbone = {key: tensor for key, tensor in kept.items() if key.rpartition(".")[0] not in heads}
    assert not any("text_model" in key for key in kept)
    sums = {(tensor.numel(), tensor.double().sum().item()) for tensor in tower.values()}  # equal weights, any names
    assert all((tensor.numel(), tensor.double().sum().item()) in sums for tensor in backbone.values())
    assert len(backbone) > 20
    for layer in heads.values():
        assert layer.weight.shape[0] == 3
        assert 0 < layer.weight.abs().max() < 1e-4


def test_features_are_means_of_patch_tokens(towers):
    """As the docstrings of the module and of `modeling_clip` have it, from the towers themselves."""
    for name, first in (("clip_vision", 1), ("siglip_vision", 0)):
        expected = tiny_tower(name).eval()(PIXELS).last_hidden_state[:, first:].mean(dim=1)
        torch.testing.assert_close(pooled(load_pretrained_classifier(towers[name], COUNTS)), expected)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_whole_models_and_their_towers_give_equal_classifiers(name, towers, tmp_path):
    whole = tiny_tower(name)
    whole.vision_model.save_pretrained(tmp_path)
    from_tower, from_whole = (load_pretrained_classifier(path, COUNTS) for path in (str(tmp_path), towers[name]))
    torch.testing.assert_close(pooled(from_tower), pooled(from_whole), rtol=0, atol=0)
    assert type(whole.vision_model) in (CLIPVisionModel, SiglipVisionModel)


@pytest.mark.skipif("siglip2" not in AVAILABLE, reason="this transformers has no SigLIP 2")
def test_naflex_is_a_siglip_on_square_images(towers):
    """Siglip2 reads patches, rows first, channels last; the converted model reads the image."""
    naflex = tiny_tower("siglip2").eval()
    patches = PIXELS.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 12)
    inputs = {"pixel_attention_mask": torch.ones(2, 16, dtype=torch.int32), "spatial_shapes": torch.full((2, 2), 4)}
    outputs = naflex.vision_model(pixel_values=patches, **inputs)
    torch.testing.assert_close(
        pooled(load_pretrained_classifier(towers["siglip2"], COUNTS)), outputs.last_hidden_state.mean(dim=1)
    )
    converted = fixed_resolution(naflex).eval()
    torch.testing.assert_close(converted.vision_model(PIXELS).pooler_output, outputs.pooler_output)
    tokens = torch.randint(2, 96, (2, 16), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        converted.text_model(tokens).pooler_output, naflex.text_model(tokens).pooler_output, rtol=0, atol=0
    )


# Gradients


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_trainable_parameter_gets_a_gradient(name, towers):
    model = load_pretrained_classifier(towers[name], COUNTS).train()
    enable_gradient_checkpointing(model)
    nn.functional.cross_entropy(model(PIXELS).logits, torch.tensor([0, 1])).backward()
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {key for key, parameter in model.named_parameters() if parameter.grad is None} == frozen
    unused = ("mask_token", "post_layernorm.", "vision_model.head.", "pooler.")
    assert all(any(part in key for part in unused) for key in frozen)
    assert ("clip" in name and "post_layernorm" in str(frozen)) == ("clip" in name)
    assert any("head.probe" in key for key in frozen) == name.startswith("siglip")


def test_what_is_frozen_is_what_the_logits_do_not_depend_on():
    class Branches(nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(12, 2), nn.Linear(12, 2)

        def forward(self, pixel_values):
            return transformers.modeling_outputs.ImageClassifierOutput(logits=self.used(pixel_values.flatten(1)))

    model = Branches()
    assert freeze_unused(model, 2) == ["unused.weight", "unused.bias"]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]
    assert model.training


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_layers_of_the_backbone_are_found(name, towers):
    """Layer decay: embeddings 0, two blocks, classifier 3; positions and tokens have no weight decay."""
    model = load_pretrained_classifier(towers[name], COUNTS)
    layers = layer_ids(model)
    assert set(layers.values()) == {0, 1, 2, 3}
    assert all(layers[f"{head}.weight"] == 3 for head in classifier_layers(model))
    embeddings = [key for key in layers if any(part in key for part in ("patch_embed", "position_emb", "layrnorm"))]
    assert embeddings
    assert {layers[key] for key in embeddings} == {0}
    decayed = {
        id(parameter)
        for group in parameter_groups(model, 0.05, 0.5)
        if group["weight_decay"]
        for parameter in group["params"]
    }
    tokens = ("position_embedding", "pos_embed", "cls_token", "class_embedding", "reg_token", "register_tokens")
    assert not any(id(p) in decayed for key, p in model.named_parameters() if any(part in key for part in tokens))
    assert decayed


def test_a_layer_of_as_many_outputs_as_classes_is_not_taken_for_the_classifier(towers):
    counts = {f"class {label}": 2 for label in range(VISION["hidden_size"])}
    for name in ("clip", "siglip"):
        assert list(classifier_layers(load_pretrained_classifier(towers[name], counts))) == ["classifier"]


# Precision, sizes, statistics


def test_half_precision_checkpoints_are_trained_in_float32(tmp_path):
    tiny_tower("clip").to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    tiny_tower("siglip_vision").to(torch.float16).save_pretrained(tmp_path / "tower")
    for folder in ("whole", "tower"):
        model = load_pretrained_classifier(str(tmp_path / folder), COUNTS)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["clip", "siglip_vision", "siglip2", "metaclip_2", "dinov2_registers", "ijepa"])
def test_positions_are_interpolated_as_transformers_does_it(name, towers, tmp_path):
    """At another size the model equals the one of the checkpoint's size with interpolate_pos_encoding."""
    if name not in AVAILABLE:
        pytest.skip(f"this transformers has no {name}")
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    own, larger = (load_pretrained_classifier(towers[name], COUNTS, image_size=size) for size in (None, 12))
    assert larger.config.image_size == vision_config(larger.config).image_size == 12
    options = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    found = []
    own.classifier.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    own.eval()(pixels, **options)
    torch.testing.assert_close(pooled(larger, pixels), found[0], rtol=1e-4, atol=1e-5)
    larger.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded.eval()(pixels).logits, larger(pixels).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["timm_dinov3"])
def test_rotary_positions_fit_any_size(name, towers, tmp_path):
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    larger = load_pretrained_classifier(towers[name], COUNTS, image_size=12).eval()
    assert larger.config.image_size == 12
    larger.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded(pixels).logits, larger(pixels).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["clip", "siglip_vision", "dinov2", "vit"])
def test_a_size_that_the_patches_do_not_divide_is_named(name, towers):
    with pytest.raises(ValueError, match="^image_size: 9 is not divisible by patch_size 2; use image_size 8"):
        load_pretrained_classifier(towers[name], COUNTS, image_size=9)


def test_sizes_are_those_of_the_vision_tower(towers):
    for name in set(AVAILABLE) - {"timm_dinov3", "timm"}:
        config = transformers.AutoConfig.from_pretrained(towers[name])
        assert saved_image_size(towers[name], config) == 8


def test_statistics_are_those_of_the_processor_else_of_the_family(towers, tmp_path, caplog):
    caplog.set_level("INFO")
    expected = {
        "clip": CLIPImageProcessor().image_mean,
        "metaclip_2_vision": CLIPImageProcessor().image_mean,
        "siglip": [0.5] * 3,
        "siglip2_vision": [0.5] * 3,
        "dinov2": [0.485, 0.456, 0.406],
    }
    for name, mean in expected.items():
        if name in AVAILABLE:
            caplog.clear()
            assert pixel_statistics(towers[name])[0] == pytest.approx(mean, abs=1e-9)
            whose = "ImageNet's" if name == "dinov2" else "those of its family"
            (line,) = caplog.messages
            assert line.startswith(f"mean, std: {towers[name]} has no image processor; {whose} are assumed, [")
    caplog.clear()
    save_tower("clip", tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8, image_mean=[0.1] * 3).save_pretrained(tmp_path)
    assert pixel_statistics(str(tmp_path))[0] == [0.1] * 3
    assert pixel_statistics(towers["clip"], mean=[0.2] * 3, std=[0.3] * 3) == ([0.2] * 3, [0.3] * 3)
    assert not caplog.messages


# What has no native classifier


@pytest.mark.parametrize("model_type", ["dinov3_vit", "dinov3_convnext"])
def test_dinov3_of_transformers_is_refused_with_the_name_of_timms(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=rf"'{model_type}' model, for which .*; give .* timm/\w+\.?dinov3\w*"):
        load_pretrained_classifier(str(tmp_path), COUNTS)


@pytest.mark.parametrize("model_type", ["clip_text_model", "sam"])
def test_models_that_are_no_backbones_are_named(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"^pretrained: .*it is a '{model_type}' model; give .* CLIP, SigLIP, DINOv2"):
        load_pretrained_classifier(str(tmp_path), COUNTS)


# The whole fine-tuning

OPTIONS = {"image_size": None, "max_steps": 2, "batch_size": 16, "save_every": 2, "logging_steps": 1, "drop_path": 0.0}


IN_BRIEF = ("clip", "siglip2", "timm_dinov3")


@pytest.mark.parametrize(
    "name", [name if name in IN_BRIEF else pytest.param(name, marks=pytest.mark.slow) for name in AVAILABLE]
)
def test_fine_tuning_gives_a_native_classifier(name, towers, tmp_path):
    results = finetune(finetune_arguments(tmp_path, pretrained=towers[name], **OPTIONS), QUIET)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [native_class(name).__name__]
    assert config["image_size"] == 8
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(model) is native_class(name)
    assert list(model.config.id2label.values()) == [str(digit) for digit in range(10)]
    assert results["parameters"] == model.num_parameters()
    card = (tmp_path / "README.md").read_text()
    assert f"`{native_class(name).__name__}`" in card or name == "vit_mae"
    assert "None" not in card
    assert "model.safetensors" in check_model_folder(tmp_path)


def test_the_result_is_evaluated_adjusted_and_used_by_a_pipeline(towers, tmp_path):
    """A CLIP at another size, with the processor of this package: the pipeline sees the pixels of the evaluation."""
    model = load_pretrained_classifier(towers["clip"], COUNTS, image_size=12)
    store_class_counts(model.config, COUNTS, loss="ce", tau=0.0, pretrained=towers["clip"])
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(4))
    processor = image_processor(12, 0.75, *pixel_statistics(towers["clip"]))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")

    pixels = EvalTransform(12, 0.75)(torch.from_numpy(np.array(image)).permute(2, 0, 1))["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (pixels / 255 - mean) / std
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"][0], pixels, rtol=1e-5, atol=1e-5)
    expected = model.eval()(pixels.unsqueeze(0)).logits[0].softmax(0).tolist()
    by_name = dict(zip(COUNTS, expected, strict=True))
    scores = transformers.pipeline("image-classification", str(tmp_path / "model"))(image, top_k=3)
    assert {score["label"]: score["score"] for score in scores} == pytest.approx(by_name, abs=1e-5)
    (predicted,) = predict_images(tmp_path / "model", [tmp_path / "image.png"])
    assert {score["label"]: score["score"] for score in predicted["predictions"]} == pytest.approx(by_name, abs=1e-5)

    adjust(tmp_path / "model", tmp_path / "uniform", target="uniform")
    (predicted,) = predict_images(tmp_path / "uniform", [tmp_path / "image.png"])
    shifted = {name: by_name[name] / COUNTS[name] for name in COUNTS}  # the prior of the training images leaves
    total = sum(shifted.values())
    assert {score["label"]: score["score"] for score in predicted["predictions"]} == pytest.approx(
        {name: value / total for name, value in shifted.items()}, abs=1e-5
    )
