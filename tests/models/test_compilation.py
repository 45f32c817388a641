"""Compiled blocks: one program for all depths, the results of the eager model, plain names."""

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification
from transformers.models.beit.modeling_beit import BeitDropPath

from helpers.training import SIZES
from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.models.compilation import DropPath, check_compiler, compile_blocks
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.modeling_livt import config_for_classes

IMAGE = {"image_size": 8, "patch_size": 4, "intermediate_size": 64}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 2}


def autoencoder(depth):
    config = LivtMAEConfig(**{**SIZES, **IMAGE, "num_hidden_layers": depth}, **DECODER, decoder_intermediate_size=32)
    return LivtMAEForPreTraining(config)


def classifier(depth, drop_path=0.3):
    sizes = {**SIZES, **IMAGE, "num_hidden_layers": depth, "drop_path_rate": drop_path}
    return ViTForBalancedClassification(LivtConfig(**sizes, **config_for_classes({"ant": 3, "bee": 2})))


def dinov2(depth):
    sizes = {**SIZES, **IMAGE, "num_hidden_layers": depth, "drop_path_rate": 0.3}
    return Dinov2ForImageClassification(Dinov2Config(**sizes, num_labels=2))


def result(model, pixels):
    """Loss of the autoencoder, logits of a classifier."""
    if isinstance(model, LivtMAEForPreTraining):
        return model(pixels, noise=torch.rand(len(pixels), 4, generator=torch.Generator().manual_seed(1))).loss
    return model(pixel_values=pixels).logits


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize(("build", "programs"), [(autoencoder, 3), (classifier, 1), (dinov2, 1)])
def test_a_block_is_compiled_once_for_any_depth(build, programs):
    """The autoencoder has three kinds of blocks: those of the encoder, of the decoder, and the decoder's last."""
    for depth in (2, 12):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = build(depth).train()
        compile_blocks(model, backend="aot_eager")
        for _ in range(2):
            result(model, torch.randn(4, 3, 8, 8)).sum().backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == programs


@pytest.mark.parametrize(
    ("settings", "variables", "error"),
    [
        ({"backend": "foo"}, {}, "torch_compile_backend or .*: 'foo' is unknown; use one of: no, eager, aot_eager, "),
        ({"mode": "fast"}, {}, "torch_compile_mode or .*: 'fast' is unknown; use one of: default, "),
        (
            {},
            {"ACCELERATE_DYNAMO_BACKEND": "foo"},
            ".* or ACCELERATE_DYNAMO_BACKEND: 'foo' is unknown; use one of",
        ),
        ({}, {"ACCELERATE_DYNAMO_MODE": "fast"}, ".* or ACCELERATE_DYNAMO_MODE: 'fast' is unknown; use one of: "),
    ],
)
def test_unknown_settings_of_the_compiler_are_named(settings, variables, error, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{error}"):
        check_compiler(**settings)


def test_known_settings_of_the_compiler_pass(monkeypatch):
    check_compiler()
    check_compiler("inductor", "reduce-overhead")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    check_compiler()


@pytest.mark.parametrize("build", [autoencoder, lambda depth: classifier(depth, drop_path=0.0)])
def test_compiled_blocks_compute_what_eager_ones_do(build):
    torch.manual_seed(0)
    model, pixels = build(2).train(), torch.randn(4, 3, 8, 8)
    names = set(model.state_dict())
    outputs, gradients = [], []
    for compiled in (False, True):
        if compiled:
            compile_blocks(model, backend="aot_eager")
        model.zero_grad()
        outputs.append(result(model, pixels))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-6)
    assert set(model.state_dict()) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_the_rate_of_drop_path_stays_that_of_each_block():
    model = classifier(4)
    compile_blocks(model, backend="aot_eager")
    kept = [layer.drop_path.keep.item() for layer in model.beit.layers]
    assert kept == pytest.approx([1.0, 0.9, 0.8, 0.7])
    plain = classifier(4, drop_path=0.0)
    compile_blocks(plain, backend="aot_eager")
    assert all(type(layer.drop_path) is nn.Identity for layer in plain.beit.layers)


@pytest.mark.parametrize("drop", [BeitDropPath, DropPath])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(drop):
    torch.manual_seed(0)
    dropped = drop(0.25).train()(torch.ones(20000, 2, 3))
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert per_sample.mean().item() == pytest.approx(1.0, abs=5 * (0.25 / 0.75 / 20000) ** 0.5)
    assert torch.equal(drop(0.25).eval()(torch.ones(2, 2)), torch.ones(2, 2))
