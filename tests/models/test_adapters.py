"""Light fine-tuning: which parameters are trained, and that merged low-rank updates leave a native model."""

import sys

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from helpers.tiny_models import tiny
from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.models.adapters import Adapter, add_adapter, lora_targets, merge_adapter
from livt_hf.models.loading import classifier_layers, enable_gradient_checkpointing
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.optimization import layer_ids, parameter_groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
COUNTS = {str(digit): 10 for digit in range(10)}
FAMILIES = ["livt", "vit", "deit", "swin", "dinov2", "convnext", "timm"]


def model_of(family):
    if family != "livt":
        options = {"layer_scale_init_value": 1.0} if family == "convnext" else {}
        return tiny(family, **options).eval()
    torch.manual_seed(0)
    config = LivtConfig(**SIZES, image_size=8, patch_size=2, **config_for_classes(COUNTS), drop_path_rate=0.1)
    model = ViTForBalancedClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def images(seed=1):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def updated(model):
    """The same model, its low-rank updates no longer zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_has_the_logits_and_the_tensors_of_the_architecture(family):
    original, model = model_of(family), model_of(family)
    names = list(model.state_dict())
    add_adapter(model, Adapter("lora", rank=3, alpha=7))
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, original(images()).logits)  # B is zero
        before = updated(model)(images()).logits
        assert (before - original(images()).logits).abs().max() > 0.01, "the updates have no effect"
        merge_adapter(model)
        torch.testing.assert_close(model(images()).logits, before, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert all(type(module) is type(original.get_submodule(name)) for name, module in model.named_modules())


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "o_proj", "fc1"])
def test_an_update_adds_its_scaled_product_to_the_weight(target):
    """Of each layer: the attention of `ViTForBalancedClassification` multiplies with q, k and v in one product."""
    layer = model_of("livt").beit.layers[1]
    path = next(name for name, _ in layer.named_modules() if name.endswith(target))
    model, by_hand = model_of("livt"), model_of("livt")
    add_adapter(model, Adapter("lora", rank=2, alpha=5, targets=(f"layers.1.{path}",)))
    adapted = updated(model).beit.layers[1].get_submodule(path)
    with torch.no_grad():
        product = adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
        by_hand.beit.layers[1].get_submodule(path).weight += 5.0 / 2 * product
        torch.testing.assert_close(model(images()).logits, by_hand(images()).logits, rtol=1e-4, atol=1e-5)
    assert len([name for name, _ in model.named_parameters() if "lora_" in name]) == 2


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_linear_layers_of_the_blocks_are_the_default():
    vit = lora_targets(model_of("vit"))
    assert len(vit) == 2 * 6  # q, k, v, output, and the two layers of the MLP
    assert not any("classifier" in name for name in vit)
    assert len(lora_targets(model_of("timm"))) == 2 * 4  # qkv is one layer there
    assert len(lora_targets(model_of("convnext"))) == 3 * 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "bias", "layernorm"])
def test_the_classifier_and_only_the_adapter_are_trained(family, kind):
    model = model_of(family)
    heads = {f"{name}.{field}" for name in classifier_layers(model) for field in ("weight", "bias")}
    norms = {
        f"{name}.{field}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for field in ("weight", "bias")
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    add_adapter(model, Adapter(kind))
    found = trained(model)
    if kind == "lora":
        assert {name for name in found if ".lora_A." not in name and ".lora_B." not in name} == heads
    else:
        assert found == heads | {"bias": biases, "layernorm": norms}[kind]
    groups = parameter_groups(model, 0.05, 0.75)
    assert sum(len(group["params"]) for group in groups) == len(found)
    model.train()(images()).logits.sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == found


def test_updates_belong_to_the_layer_of_their_block():
    model = model_of("vit")
    add_adapter(model, Adapter("lora"))
    layers = layer_ids(model)
    assert {layers[name] for name in layers if "lora_A" in name} == {1, 2}


def test_gradient_checkpointing_reaches_the_first_block():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = model_of("livt")
        add_adapter(model, Adapter("lora"))
        updated(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
        torch.manual_seed(4)
        model.train()(images()).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if "lora" in name})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert gradient.abs().max() > 0, name


def test_what_cannot_be_adapted_is_one_line(monkeypatch):
    with pytest.raises(
        ValueError, match=r"^adapter_targets: no linear layer of ViT\w+ is named 'query2'; .* named .*fc1"
    ):
        add_adapter(model_of("vit"), Adapter("lora", targets=("query2",)))
    with pytest.raises(ValueError, match=r"^adapter_targets: no linear layer of ViT\w+ is named 'classifier'"):
        add_adapter(model_of("vit"), Adapter("lora", targets=("classifier",)))
    resnet = ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    )
    with pytest.raises(ValueError, match="^adapter: no linear layers were found in the blocks of ResNet"):
        add_adapter(resnet, Adapter("lora"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^adapter: lora needs the library peft; pip install 'livt-hf\[adapters\]'$"):
        add_adapter(model_of("vit"), Adapter("lora"))
