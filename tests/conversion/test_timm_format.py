"""To timm and back: the same logits, the same preprocessing of images."""

import json

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, BeitConfig, BeitForImageClassification
from transformers.utils.logging import disable_progress_bar

from helpers.conversion import NAMES, POOLINGS, check_usage
from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.cli import main
from livt_hf.conversion.timm_format import convert_timm, crop_ratio, export_timm
from livt_hf.data.transforms import image_processor

disable_progress_bar()


@pytest.fixture(scope="module")
def photo():
    """A color image that is not square."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((70, 90), PIL.Image.Resampling.BICUBIC)


# To timm


@pytest.mark.parametrize("pooling", POOLINGS)
def test_timm_gives_the_same_logits_with_its_own_preprocessing(tmp_path, outputs, photo, classifiers, pooling):
    assert export_timm(classifiers[pooling], tmp_path / "timm") <= 1e-5
    vit = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert type(vit).__name__ == "VisionTransformer"
    assert vit.global_pool == ("avg" if pooling == "global_pool" else "token")
    assert vit.num_classes == 12
    assert vit.pretrained_cfg["label_names"] == NAMES
    with torch.no_grad():
        torch.testing.assert_close(vit(outputs["pixel_values"]), outputs[f"logits_{pooling}"], rtol=1e-5, atol=1e-5)
    for name, tensor in vit.state_dict().items():
        if name.endswith("qkv.bias"):
            assert not tensor.chunk(3)[1].any()
    preparation = timm.data.create_transform(**timm.data.resolve_model_data_config(vit), is_training=False)
    expected = AutoImageProcessor.from_pretrained(classifiers[pooling])(photo, return_tensors="pt").pixel_values[0]
    # PIL and torch round differently after each of the two passes of a resize: 2 of 255 levels, 1 / (255 std) each
    torch.testing.assert_close(preparation(photo), expected, rtol=0, atol=2 / 255 / 0.192 + 1e-4)


def test_the_code_of_the_card_classifies_a_photo(tmp_path, photo, classifiers, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg", quality=95)
    export_timm(classifiers["global_pool"], "timm")
    check_usage(tmp_path / "timm" / "README.md", classifiers["global_pool"], capsys)


def test_config_json_has_what_timm_needs(tmp_path, classifiers):
    export_timm(classifiers["global_pool"], tmp_path / "timm")
    assert {file.name for file in (tmp_path / "timm").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["model_args"] == {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "mlp_ratio": 4.0,
        "num_classes": 12,
        "global_pool": "avg",
    }
    assert config["pretrained_cfg"] == {
        "tag": "livt",
        "input_size": [3, 32, 32],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 32 / 36,
        "crop_mode": "center",
        "mean": [0.466, 0.471, 0.380],
        "std": [0.195, 0.194, 0.192],
        "num_classes": 12,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def test_timm_resizes_to_the_same_shorter_side_at_every_size():
    for size in range(8, 600, 4):
        processor = image_processor(size, 0.875, (0.5,) * 3, (0.5,) * 3)
        assert int(size / crop_ratio(processor)) == processor.size["shortest_edge"]
    assert crop_ratio(image_processor(224, 0.875, (0.5,) * 3, (0.5,) * 3)) == 0.875
    assert crop_ratio(image_processor(384, 0.875, (0.5,) * 3, (0.5,) * 3)) == 1.0


def test_models_that_timm_cannot_express_are_named(tmp_path, capsys, classifiers):
    def error(model):
        assert main(["export", "--format", "timm", "--model", str(model), "--output_dir", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")

    config = BeitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    BeitForImageClassification(config).save_pretrained(tmp_path / "beit")
    image_processor(8, 0.875, (0.5,) * 3, (0.5,) * 3).save_pretrained(tmp_path / "beit")
    assert error(tmp_path / "beit") == (
        f"{tmp_path / 'beit'}: is not a plain ViT: use_absolute_position_embeddings is False instead of True"
    )
    assert error(tmp_path / "none").startswith(
        f"model: '{tmp_path / 'none'}' cannot be loaded as an image classifier: "
    )


# From timm


def timm_folder(folder, **model_args):
    """A folder as timm saves it, of a tiny ViT with random weights."""
    args = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 5,
        **model_args,
    }
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224", **args).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)  # also key biases and norms
    folder.mkdir()
    save_file(vit.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 16, 16], "fixed_input_size": True, "interpolation": "bilinear", "crop_pct": 0.9}
    cfg |= {"mean": [0.5] * 3, "std": [0.25] * 3, "license": "apache-2.0"}
    config = {"architecture": "vit_base_patch16_224", "num_classes": 5, "model_args": args, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return vit


@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_a_vit_of_timm_becomes_a_native_classifier(tmp_path, capsys, photo, pooling):
    vit = timm_folder(tmp_path / "vit", global_pool=pooling)
    argv = ["convert", "--source", "timm", str(tmp_path / "vit"), str(tmp_path / "model")]
    assert main(argv) == 0
    assert "dropped: 2, such as blocks.0.attn.qkv.bias (k)" in capsys.readouterr().out
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, vit(pixels), rtol=1e-5, atol=1e-4)
    config = LivtConfig.from_pretrained(tmp_path / "model")
    assert (config.num_attention_heads, config.use_mean_pooling) == (4, pooling == "avg")
    assert (config.loss, config.pretrained, config.class_counts) == ("ce", "timm vit", None)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert processor.size["shortest_edge"] == 17  # floor(16 / 0.9)
    assert processor.resample == PIL.Image.Resampling.BILINEAR
    card = (tmp_path / "model" / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card
    assert "`vit`, a checkpoint of timm" in card
    assert "timm states the license `apache-2.0`" in card


@pytest.mark.parametrize("pooling", POOLINGS)
def test_to_timm_and_back_gives_the_same_model(tmp_path, classifiers, pooling):
    export_timm(classifiers[pooling], tmp_path / "timm")
    convert_timm(str(tmp_path / "timm"), tmp_path / "back")
    before = ViTForBalancedClassification.from_pretrained(classifiers[pooling])
    after = ViTForBalancedClassification.from_pretrained(tmp_path / "back")
    assert set(before.state_dict()) == set(after.state_dict())
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert after.config.id2label == before.config.id2label
    old, new = (AutoImageProcessor.from_pretrained(path) for path in (classifiers[pooling], tmp_path / "back"))
    assert old.to_dict() == new.to_dict()


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"init_values": 0.1}, "unexpected: blocks.0.ls1.gamma, blocks.0.ls2.gamma"),
        ({"reg_tokens": 2}, "pos_embed: shape (1, 19, 48) is not CLS and a square grid of width 48"),
        ({"qk_norm": True}, "unexpected: blocks.0.attn.k_norm.bias"),
        ({"qkv_bias": False}, "missing: blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias"),
        ({"class_token": False, "global_pool": "avg"}, "a plain VisionTransformer with a classifier is needed"),
        ({"num_classes": 0}, "is a VisionTransformer; a plain VisionTransformer with a classifier is needed"),
        # Settings that tensor names do not show
        ({"global_pool": "avg", "fc_norm": False}, "is not a plain ViT: after conversion its logits differ by"),
        ({"global_pool": "max"}, "is not a plain ViT: after conversion its logits differ by"),
        ({"act_layer": "quick_gelu"}, "is not a plain ViT: after conversion its logits differ by"),
    ],
)
def test_other_vits_of_timm_are_refused(tmp_path, capsys, model_args, message):
    timm_folder(tmp_path / "vit", **model_args)
    assert main(["convert", "--source", "timm", str(tmp_path / "vit"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'vit'}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_timm_cannot_load_gets_one_line(tmp_path, capsys):
    for model in ("no_such_model", str(tmp_path)):
        assert main(["convert", "--source", "timm", model, str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {model}: timm cannot load it: ")
        assert error.count("\n") == 1
