"""The masked autoencoder: official initialization, official loss, native checkpoints."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from helpers.paths import FIXTURES
from livt_hf import LivtMAEForPreTraining
from livt_hf.conversion.key_map import key_map, to_native
from livt_hf.conversion.official import read_checkpoint
from livt_hf.data import normalize
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.modeling_livt_mae import MASK_GRAY, gather_patches, reconstruct_images

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 32,
    "patch_size": 4,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
}


def tiny_mae(**fields) -> LivtMAEForPreTraining:
    torch.manual_seed(0)
    return LivtMAEForPreTraining(LivtMAEConfig(**{**TINY, **fields})).eval()


def official_mae(**fields) -> LivtMAEForPreTraining:
    model = tiny_mae(**fields)
    official, _ = read_checkpoint(FIXTURES / "livt_pretrain.pth")
    model.load_state_dict(to_native(official, key_map(model.config))[0])  # strict
    return model


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_prediction_and_mask_equal_the_official_ones(norm_pix_loss):
    outputs = load_file(FIXTURES / "official_outputs.safetensors")
    with torch.no_grad():
        output = official_mae(norm_pix_loss=norm_pix_loss)(outputs["pixel_values"], noise=outputs["mae_noise"])
    expected = outputs[f"mae_loss_norm_pix_{str(norm_pix_loss).lower()}"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output.mask, outputs["mae_mask"])
    hidden = output.ids_restore.argsort(dim=1)[:, 16:]
    expected = outputs["mae_pred"].gather(1, hidden[:, :, None].expand(-1, -1, 48))
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_position_embeddings_equal_the_official_ones():
    outputs = load_file(FIXTURES / "official_outputs.safetensors")
    model = tiny_mae()
    torch.testing.assert_close(model.vit.embeddings.position_embeddings.data, outputs["init_pos_embed"])
    torch.testing.assert_close(model.decoder.decoder_pos_embed.data, outputs["init_decoder_pos_embed"])


def assert_fixed_positions(position_embeddings: torch.nn.Parameter, grid: int, width: int) -> None:
    """Against a literal evaluation of the formula, one entry at a time."""
    assert not position_embeddings.requires_grad
    expected = np.zeros((1 + grid * grid, width))
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                patch = expected[1 + row * grid + column]
                patch[i], patch[quarter + i] = np.sin(column * frequency), np.cos(column * frequency)
                patch[2 * quarter + i], patch[3 * quarter + i] = np.sin(row * frequency), np.cos(row * frequency)
    np.testing.assert_allclose(position_embeddings[0].detach().numpy(), expected, atol=1e-6)


def test_it_starts_with_positions_also_after_saving_and_loading(tmp_path):
    model = tiny_mae()
    model.save_pretrained(tmp_path)
    for candidate in (
        model,
        LivtMAEForPreTraining.from_pretrained(tmp_path),
        LivtMAEForPreTraining(ViTMAEConfig(**TINY)),
    ):
        assert_fixed_positions(candidate.vit.embeddings.position_embeddings, 8, 48)
        assert_fixed_positions(candidate.decoder.decoder_pos_embed, 8, 32)


def test_upstream_still_starts_without_positions_which_is_why_ours_differs():
    upstream = ViTMAEForPreTraining(ViTMAEConfig(**TINY))
    assert not upstream.decoder.decoder_pos_embed.any()


def test_weights_are_initialized_as_officially():
    """Tokens ~ normal(0.02); Linear Xavier-uniform; q, k, v each a third of a Xavier-uniform (3D, D) matrix."""
    model = tiny_mae(hidden_size=192, intermediate_size=768)
    encoder, layer = model.vit.embeddings, model.vit.layers[1]
    assert 0.017 < encoder.cls_token.std().item() < 0.023
    assert 0.012 < model.decoder.mask_token.std().item() < 0.028  # 32 numbers only
    bounds = {
        layer.attention.q_proj: (6 / (4 * 192)) ** 0.5,
        layer.attention.k_proj: (6 / (4 * 192)) ** 0.5,
        layer.attention.v_proj: (6 / (4 * 192)) ** 0.5,
        layer.attention.o_proj: (6 / (2 * 192)) ** 0.5,
        layer.mlp.fc1: (6 / (5 * 192)) ** 0.5,
        layer.mlp.fc2: (6 / (5 * 192)) ** 0.5,
        encoder.patch_embeddings.projection: (6 / (192 + 48)) ** 0.5,
        model.decoder.decoder_embed: (6 / (192 + 32)) ** 0.5,
        model.decoder.decoder_pred: (6 / (32 + 48)) ** 0.5,
        model.decoder.decoder_layers[0].attention.v_proj: (6 / (4 * 32)) ** 0.5,
    }
    for module, bound in bounds.items():
        assert module.weight.abs().max().item() <= bound
        assert module.weight.abs().max().item() > 0.95 * bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
    assert model.vit.layernorm.weight.eq(1).all()


def test_loading_leaves_loaded_tensors_alone_and_initializes_missing_ones(tmp_path):
    """An encoder alone becomes an autoencoder with a decoder that has positions."""
    model = tiny_mae()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.vit.save_pretrained(tmp_path)
    again = LivtMAEForPreTraining.from_pretrained(tmp_path, config=LivtMAEConfig(**TINY))
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, again.vit.state_dict()[name]), name
    assert_fixed_positions(again.decoder.decoder_pos_embed, 8, 32)


def test_the_loss_reads_masked_patches_only():
    """By hand: mean squared error over the masked patches; predictions for visible ones do not matter."""
    model = tiny_mae(norm_pix_loss=False)
    images = torch.randn(2, 3, 32, 32)
    noise = torch.rand(2, 64)
    with torch.no_grad():
        output = model(images, noise=noise)
    assert output.mask.sum(dim=1).tolist() == [48, 48]
    for image in range(2):
        visible = noise[image].argsort()[:16]
        assert not output.mask[image, visible].any()
    # Patches by hand: rows of 4 x 4 pixels, channels last.
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(2, 64, 48)
    hidden = noise.argsort(dim=1)[:, 16:]
    expected = torch.stack([(output.logits[i] - patches[i, hidden[i]]).square().mean() for i in range(2)]).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_normalized_targets_have_zero_mean_and_unit_variance_per_patch():
    """A decoder that predicts zeros then has a loss of (P - 1) / P: the variance is the unbiased one, as officially."""
    model = tiny_mae()
    with torch.no_grad():
        model.decoder.decoder_pred.weight.zero_()
        loss = model(torch.randn(8, 3, 32, 32), noise=torch.rand(8, 64)).loss
    assert loss.item() == pytest.approx(47 / 48, rel=1e-4)


def test_the_loss_is_float32_under_autocast():
    model = tiny_mae()
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    with torch.no_grad():
        exact = model(images, noise=noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images, noise=noise)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    # bf16 rounds the prediction only; its loss is computed in float32.
    mean, std = images_statistics(model, images)
    target = gather_patches((model.patchify(images) - mean) / std, noise.argsort(dim=1)[:, 16:])
    assert output.loss.item() == pytest.approx((output.logits.float() - target).square().mean().item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)


def images_statistics(model, images):
    patches = model.patchify(images)
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruct_keeps_visible_patches_and_denormalizes_masked_ones(norm_pix_loss):
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    images, noise = torch.randn(2, 3, 32, 32) * 3 + 1, torch.rand(2, 64)
    picture, mask = model.reconstruct(images, noise=noise)
    assert picture.shape == images.shape
    with torch.no_grad():
        prediction = model(images, noise=noise).logits
    mean, std = images_statistics(model, images)
    hidden = noise.argsort(dim=1)[:, 16:]
    expected = prediction * gather_patches(std, hidden) + gather_patches(mean, hidden) if norm_pix_loss else prediction
    patches, original, masked = model.patchify(picture), model.patchify(images), mask.bool()
    assert torch.equal(patches[~masked], original[~masked])
    torch.testing.assert_close(gather_patches(patches, hidden), expected)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_and_gradients_equal_upstreams_although_less_is_computed(norm_pix_loss, tmp_path):
    ours = tiny_mae(norm_pix_loss=norm_pix_loss)
    ours.save_pretrained(tmp_path)
    upstream = ViTMAEForPreTraining.from_pretrained(tmp_path)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    losses = []
    for model in (ours, upstream):
        loss = model(images, noise=noise).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    expected = {name: parameter.grad for name, parameter in upstream.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_partial_reconstruction_predicts_the_first_masked_patches():
    """A quarter of 48 masked patches: 12 are decoded, and the decoder does not get the other 36."""
    model = tiny_mae(partial_reconstruction=0.25, norm_pix_loss=False)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    with torch.no_grad():
        output = model(images, noise=noise)
        order = noise.argsort(dim=1)
        encoded = model.vit(images, noise=noise).last_hidden_state
        prediction = model.decoder(encoded, order[:, :28])
    assert output.logits.shape == (2, 12, 48)
    expected = (prediction - gather_patches(model.patchify(images), order[:, 16:28])).square().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.mask.sum().item() == 96


def test_saved_as_plain_vit_mae_that_transformers_loads_alone(tmp_path):
    model = tiny_mae()
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    with torch.no_grad():
        expected = model(images, noise=noise).loss
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("vit_mae", ["ViTMAEForPreTraining"])
    torch.save((images, noise), tmp_path / "inputs.pt")
    code = """
import sys; sys.modules["livt_hf"] = None
import torch
from transformers import AutoModelForPreTraining, ViTMAEModel
model, info = AutoModelForPreTraining.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
images, noise = torch.load(sys.argv[1] + "/inputs.pt")
with torch.no_grad():
    print(model.eval()(images, noise=noise).loss.item())
    ViTMAEModel.from_pretrained(sys.argv[1])(images)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(expected.item(), rel=1e-6)


def test_checkpoints_of_upstream_load(tmp_path):
    torch.manual_seed(0)
    upstream = ViTMAEForPreTraining(ViTMAEConfig(**TINY, norm_pix_loss=False)).eval()
    upstream.save_pretrained(tmp_path)
    ours = LivtMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert ours.config.norm_pix_loss is False
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 64)
    with torch.no_grad():
        assert ours(images, noise=noise).loss.item() == pytest.approx(
            upstream(images, noise=noise).loss.item(), rel=1e-6
        )
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ViTMAEForPreTraining


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"partial_reconstruction": 0.0}, "partial_reconstruction: 0.0; must be above 0"),
        ({"mask_ratio": 1.0}, "mask_ratio: 1.0 leaves 0 of 64 patches visible"),
        ({"mask_ratio": 0.0}, "must be in"),
        ({"mask_ratio": 0.99}, "leaves 0 of 64"),
        ({"image_size": 30}, "image_size: 30 is not divisible by patch_size 4; use image_size 32"),
        ({"image_size": 2}, "use image_size 4"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LivtMAEConfig(**{**TINY, **fields})


def test_reconstructed_images_differ_from_the_original_in_masked_patches_only():
    mae = tiny_mae(image_size=16)
    images = torch.randint(0, 224, (2, 3, 16, 16), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    names = ("originals", "masked", "reconstructed")
    drawn = dict(zip(names, reconstruct_images(mae, images, mean, std, seed=3), strict=True))
    originals = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(drawn["originals"], originals)
    hidden = (drawn["masked"] == MASK_GRAY).all(axis=-1)  # (B, H, W)
    patches = hidden.reshape(2, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(2, 16, 16)
    assert (patches.all(-1) | ~patches.any(-1)).all()  # whole patches
    assert patches.all(-1).sum(-1).tolist() == [12, 12]  # 75 % of 16
    for shown in (drawn["masked"], drawn["reconstructed"]):
        np.testing.assert_array_equal(shown[~hidden], originals[~hidden])
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    expected, _ = mae.reconstruct(normalize(images, mean, std), noise=noise)
    pixels = (expected * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
    difference = pixels.clamp(0, 255).permute(0, 2, 3, 1).numpy() - drawn["reconstructed"]
    assert np.abs(difference).max() <= 0.51
