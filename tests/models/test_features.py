"""Features of any architecture: the linear layer on them gives the logits; autoencoders; setting the layer."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
)

from helpers.tiny_models import FAMILIES, tiny
from livt_hf import LivtMAEForPreTraining
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.features import encoder_weights, pooled_features, set_classifier
from livt_hf.models.loading import classifier_layers

_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_IMAGE = {"image_size": 8, "patch_size": 2}


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def distilled() -> DeiTForImageClassificationWithTeacher:
    torch.manual_seed(0)
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**_VIT, **_IMAGE, num_labels=10)).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layer_on_the_features_gives_the_logits(family, pixels):
    model = tiny(family).eval()
    (layer,) = classifier_layers(model).values()
    torch.testing.assert_close(layer(pooled_features(model, pixels)), model(pixels).logits)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("build", [lambda: tiny("vit").eval(), distilled], ids=["one_layer", "two_averaged_layers"])
def test_a_layer_on_the_features_becomes_the_classifier(build, pixels):
    model = build()
    features = pooled_features(model, pixels)
    layer = nn.Linear(features.shape[1], 10)
    set_classifier(model, layer)
    torch.testing.assert_close(model(pixels).logits, layer(features))


def test_a_classifier_without_a_bias_takes_no_bias(pixels):
    model = tiny("vit")
    model.classifier = nn.Linear(16, 10, bias=False)
    layer = nn.Linear(16, 10)
    with pytest.raises(ValueError, match="its linear classifier 'classifier' has no bias"):
        set_classifier(model, layer)
    nn.init.zeros_(layer.bias)
    set_classifier(model, layer)
    torch.testing.assert_close(model.classifier.weight, layer.weight)


def test_an_autoencoder_gives_its_own_features_and_its_decoder_does_not_count(pixels):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = LivtMAEForPreTraining(LivtMAEConfig(**_VIT, **_IMAGE, **decoder)).eval()
    assert torch.equal(pooled_features(model, pixels), model.features(pixels))
    assert {name.split(".")[0] for name in encoder_weights(model)} == {"vit"}


def test_a_tower_gives_its_pooled_output(pixels):
    model = CLIPVisionModel(CLIPVisionConfig(**_VIT, **_IMAGE)).eval()
    assert torch.equal(pooled_features(model, pixels), model(pixels).pooler_output)
    assert encoder_weights(model).keys() == model.state_dict().keys()


def test_all_but_the_classifier_are_encoder_weights():
    model = distilled()
    left_out = set(model.state_dict()) - set(encoder_weights(model))
    assert left_out == {f"{name}_classifier.{part}" for name in ("cls", "distillation") for part in ("weight", "bias")}
