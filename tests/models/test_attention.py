"""The attention kernel computes exact attention, whichever implementation it takes."""

import pytest
import torch

from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.models.attention import project_heads, sdpa_or_bmm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_it_equals_the_definition(dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, tokens, 8) for tokens in (5, 9, 9))
    weights = (query.double() @ key.double().transpose(2, 3) * 0.3).softmax(dim=-1)
    expected = (weights @ value.double()).transpose(1, 2).float()
    module = torch.nn.Module()
    attended, _ = sdpa_or_bmm(module, query.to(dtype), key.to(dtype), value.to(dtype), None, scaling=0.3)
    torch.testing.assert_close(attended.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_one_matrix_product_equals_separate_layers(bias):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 6, bias=bias) for _ in range(3)]
    tokens = torch.randn(2, 5, 6)
    for layer, heads in zip(layers, project_heads(tokens, layers, num_heads=3), strict=True):
        assert heads.shape == (2, 3, 5, 2)
        torch.testing.assert_close(heads.transpose(1, 2).flatten(2), layer(tokens))


def test_logits_and_gradients_of_a_classifier_in_bfloat16_are_those_of_the_fused_kernel():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForBalancedClassification(LivtConfig(**sizes, image_size=16, patch_size=4, num_labels=3))
    torch.nn.init.normal_(model.classifier.weight)
    images, outcomes = torch.randn(4, 3, 16, 16), {}
    for attention in (model.config._attn_implementation, "sdpa"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images).logits.float()
        logits.square().mean().backward()
        gradient = model.beit.layers[0].attention.q_proj.weight.grad
        outcomes[attention] = logits.detach(), gradient
    assert set(outcomes) == {"livt_sdpa_or_bmm", "sdpa"}
    ours, fused = outcomes["livt_sdpa_or_bmm"], outcomes["sdpa"]
    torch.testing.assert_close(ours[0], fused[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(ours[1], fused[1], rtol=0.1, atol=0.1 * fused[1].abs().max().item())


def test_a_requested_implementation_is_kept():
    config = LivtConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=3)
    config._attn_implementation = "eager"
    assert ViTForBalancedClassification(config).config._attn_implementation == "eager"
