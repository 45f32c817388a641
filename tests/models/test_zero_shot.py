"""Zero-shot classifiers: embeddings of class names as transformers has them, the regression, the linear classifier."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.tiny_towers import AVAILABLE, save_tokenizer, save_tower, tiny_tower
from livt_hf.models import zero_shot
from livt_hf.models.zero_shot import load_tokenizer, load_zero_shot, ridge_regression, spoken, text_classifier

NAMES = ["ant", "honey_bee", "cat"]
GENERATOR = torch.Generator().manual_seed(3)
PIXELS = torch.randn(4, 3, 8, 8, generator=GENERATOR)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    return {
        name: str(save_tokenizer(save_tower(name, folder / name), name))
        for name in ("clip", "siglip", "siglip2")
        if name in AVAILABLE
    }


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_logits_are_those_of_transformers(name, checkpoints):
    """The model's own logits_per_image of one prompt, SigLIP's without its bias."""
    loaded = load_zero_shot(checkpoints[name], NAMES, ["a {} here"])
    model, tokenizer = tiny_tower(name).eval(), load_tokenizer(checkpoints[name])
    texts = ["a ant here", "a honey bee here", "a cat here"]
    if name == "clip":
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        assert len({*map(tuple, tokens["input_ids"].tolist())}) == 3
    else:
        tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
        tokens = {"input_ids": tokens["input_ids"]}  # its pipeline gives no mask
        assert tokens["input_ids"].shape == (3, 16)
    with torch.no_grad():
        expected = model(pixel_values=PIXELS, **tokens).logits_per_image - getattr(model, "logit_bias", 0)
    torch.testing.assert_close(loaded.logits(loaded.embed(PIXELS)), expected, rtol=1e-4, atol=1e-5)
    assert loaded.scale == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.skipif("siglip2" not in AVAILABLE, reason="this transformers has no SigLIP 2")
def test_naflex_embeds_square_images_as_its_patches(checkpoints):
    loaded = load_zero_shot(checkpoints["siglip2"], NAMES, ["a {}"])
    patches = PIXELS.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 12)
    inputs = {"pixel_attention_mask": torch.ones(4, 16, dtype=torch.int32), "spatial_shapes": torch.full((4, 2), 4)}
    with torch.no_grad():
        expected = tiny_tower("siglip2").eval().vision_model(pixel_values=patches, **inputs).pooler_output
    torch.testing.assert_close(loaded.embed(PIXELS), F.normalize(expected, dim=1))


def test_a_text_that_would_be_cut_off_is_refused(checkpoints):
    longest = "many of the {}"
    with pytest.raises(ValueError, match=r"^prompt: 'many of the honey bee' has \d+ tokens, and .* reads 16; shorten"):
        load_zero_shot(checkpoints["siglip2"], NAMES, ["a {}", longest])


def test_prompts_are_averaged_as_unit_vectors(checkpoints):
    prompts = ["a {}.", "many {}"]
    first, second = (load_zero_shot(checkpoints["clip"], NAMES, [prompt]).text for prompt in prompts)
    both = load_zero_shot(checkpoints["clip"], NAMES, prompts).text
    torch.testing.assert_close(both, F.normalize((first + second) / 2, dim=1))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(3))
    assert (first - second).abs().max() > 1e-3


def test_images_of_another_size_have_an_embedding(checkpoints):
    larger = F.interpolate(PIXELS, size=12)
    for name, path in checkpoints.items():
        assert load_zero_shot(path, NAMES, ["{}"]).embed(larger).shape == (4, 8 if name == "clip" else 16)


def test_names_as_they_are_spoken():
    assert [spoken(name) for name in ("honey_bee", "n02012849 crane", "a  b", "n1 x")] == [
        "honey bee",
        "crane",
        "a b",
        "n1 x",
    ]


# What is missing


def test_checkpoints_without_a_text_tower_are_named(tmp_path):
    tiny_tower("dinov2").save_pretrained(tmp_path / "dinov2")
    with pytest.raises(
        ValueError, match="^classifier_init: .* is a 'dinov2' model and has no text tower, .*class_mean"
    ):
        load_zero_shot(str(tmp_path / "dinov2"), NAMES, ["{}"])
    tiny_tower("clip_vision").save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="is a 'clip_vision_model' model and has no text tower"):
        load_zero_shot(str(tmp_path / "vision"), NAMES, ["{}"])
    from transformers import CLIPForImageClassification

    CLIPForImageClassification(tiny_tower("clip").config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"^classifier_init: .* lacks weights of the text tower .*\(logit_scale\)"):
        load_zero_shot(str(tmp_path / "classifier"), NAMES, ["{}"])


def test_checkpoints_without_a_tokenizer_are_named(tmp_path, monkeypatch):
    """transformers gives CLIP a tokenizer without words, and others a long message."""
    path = str(save_tower("clip", tmp_path / "clip"))
    with pytest.raises(
        ValueError, match=r"^classifier_init: text needs the tokenizer of .*clip', .*has no vocabulary;"
    ):
        load_zero_shot(path, NAMES, ["{}"])

    def refuse(path):
        raise OSError("No tokenizer.\nA list of all models")

    monkeypatch.setattr(zero_shot.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"^classifier_init: [^\n]*which cannot be loaded: No tokenizer; add [^\n]*$"):
        load_tokenizer(path)


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    path = save_tokenizer(save_tower("clip", tmp_path), "clip")
    vocabulary = json.loads((path / "vocab.json").read_text())
    vocabulary["t</w>"] = 500
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="the tokenizer has .* tokens and the text tower of this CLIPModel 96"):
        load_zero_shot(str(path), NAMES, ["{}"])


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["n01440764", "n01443537"]])
def test_classes_without_names_are_refused(names, checkpoints):
    with pytest.raises(ValueError, match=f"^classifier_init: text needs names .* {names[0]}, ... here; rename"):
        load_zero_shot(checkpoints["clip"], names, ["{}"])


# The regression and the classifier


def test_ridge_regression_is_the_solution_of_the_normal_equations_of_the_best_strength():
    """By an independent path: explicit hat matrices, and the score for each strength."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)) * [3, 1, 1, 0.1, 0.01]
    y = x @ rng.normal(size=(5, 2)) + rng.normal(size=(30, 2)) + 4.0
    weight, bias, strength = ridge_regression(torch.from_numpy(x), torch.from_numpy(y))
    centered, scores, solutions = x - x.mean(0), {}, {}
    unit = np.trace(centered.T @ centered) / 5
    for candidate in [10.0 ** (exponent / 2) for exponent in range(-16, 7)]:
        inverse = np.linalg.inv(centered.T @ centered + candidate * unit * np.eye(5))
        hat = centered @ inverse @ centered.T + np.ones((30, 30)) / 30
        scores[candidate] = 30 * np.square(y - hat @ y).sum() / (30 - np.trace(hat)) ** 2
        solutions[candidate] = inverse @ centered.T @ (y - y.mean(0))
    best = min(scores, key=scores.get)
    assert strength == best
    assert 1e-8 < best < 1e3
    np.testing.assert_allclose(weight.T, solutions[best], rtol=1e-8)
    np.testing.assert_allclose(bias, y.mean(0) - x.mean(0) @ solutions[best], rtol=1e-8)


def test_embeddings_that_are_linear_in_the_features_give_the_zero_shot_logits():
    features = torch.randn(200, 12, generator=GENERATOR)
    embeddings = features @ torch.randn(12, 6, generator=GENERATOR) + torch.randn(6, generator=GENERATOR)
    text = F.normalize(torch.randn(7, 6, generator=GENERATOR), dim=1)
    weight, bias, fit = text_classifier(features[:100], embeddings[:100], text, 20.0)
    expected, logits = 20.0 * embeddings @ text.T, features @ weight.T + bias
    shift = expected - logits
    torch.testing.assert_close(shift, shift.mean().expand_as(shift), rtol=1e-3, atol=1e-3)
    assert logits[:100].mean().abs() < 1e-3
    assert expected.mean().abs() > 0.1
    assert fit["r2"] == pytest.approx(1.0)
    assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_features_without_information_give_constant_logits_of_the_mean_embedding():
    features = torch.randn(500, 4, generator=GENERATOR)
    embeddings = F.normalize(torch.randn(500, 6, generator=GENERATOR) + 2.0, dim=1)
    text = F.normalize(torch.randn(3, 6, generator=GENERATOR), dim=1)
    weight, bias, fit = text_classifier(features, embeddings, text, 1.0)
    assert fit["r2"] < 0.05
    expected = embeddings.mean(0) @ text.T
    torch.testing.assert_close(bias - bias.mean(), expected - expected.mean(), rtol=0, atol=0.02)
    assert weight.abs().max() < 0.1


def test_fewer_images_than_features_are_fitted_without_infinities():
    features = torch.randn(10, 40, generator=GENERATOR)
    embeddings = F.normalize(torch.randn(10, 6, generator=GENERATOR), dim=1)
    weight, bias, _ = text_classifier(features, embeddings, torch.eye(6), 5.0)
    assert torch.isfinite(weight).all()
    assert (features @ weight.T + bias).abs().max() < 20
