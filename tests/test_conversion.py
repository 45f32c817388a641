"""Official checkpoints: equal outputs, every tensor accounted for, nothing run, one line for what is wrong."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTMAEForPreTraining, ViTMAEModel

from livt_hf import LivtConfig, LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.class_files import LABEL_ORDER
from livt_hf.cli import main
from livt_hf.configuration_livt import LivtMAEConfig
from livt_hf.conversion import OFFICIAL_LOSSES, convert_checkpoint
from livt_hf.conversion_card import DATA_SETS, SOURCES, Conversion, conversion_card, published_figures
from livt_hf.losses import LOSS_NAMES
from livt_hf.modeling_livt import NO_KEY_BIAS
from livt_hf.official import decoder_fields, encoder_fields, key_map, kind_of, read_checkpoint, to_native, to_official

FIXTURES = Path(__file__).parent / "fixtures"
FINETUNED = FIXTURES / "livt_finetune_global_pool.pth"
PRETRAINED = FIXTURES / "livt_pretrain.pth"
HEADS = {"num_attention_heads": 3}  # width 48 is none of the ViT family
DECODER_HEADS = {"decoder_num_attention_heads": 4}


@pytest.fixture(scope="module")
def outputs():
    """What the official code computes for one batch."""
    return load_file(FIXTURES / "official_outputs.safetensors")


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "classifier"
    convert_checkpoint(FINETUNED, folder, "livt-finetune", **HEADS)
    return folder


@pytest.fixture(scope="module")
def autoencoder_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "autoencoder"
    convert_checkpoint(PRETRAINED, folder, "livt-pretrain", **HEADS, **DECODER_HEADS)
    return folder


def changed(tmp_path, source=FINETUNED, args=None, drop=(), **tensors):
    """A copy of an official checkpoint with other arguments and some tensors replaced, added or dropped."""
    weights, _ = read_checkpoint(source)
    weights = {name: tensor.clone() for name, tensor in weights.items() if name not in drop}
    path = tmp_path / "changed.pth"
    torch.save({"model": {**weights, **tensors}, "args": argparse.Namespace(**(args or {}))}, path)
    return path


def convert_classifier(path, output_dir, **options):
    convert_checkpoint(path, output_dir, "livt-finetune", **HEADS, **options)
    return LivtConfig.from_pretrained(output_dir)


# Parity


@pytest.mark.parametrize("pooling", ["global_pool", "cls_token"])
def test_a_classifier_gives_the_official_logits_and_features_natively(tmp_path, outputs, pooling):
    conversion = convert_checkpoint(FIXTURES / f"livt_finetune_{pooling}.pth", tmp_path, "livt-finetune", **HEADS)
    assert (conversion.kind, conversion.tensors) == ("classifier", 44)
    assert conversion.dropped == {f"blocks.{block}.attn.qkv.bias (k)": NO_KEY_BIAS for block in range(3)}
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(model).__name__ == "BeitForImageClassification"
    with torch.no_grad():
        features = model.beit(outputs["pixel_values"]).pooler_output
        logits = model(outputs["pixel_values"]).logits
    torch.testing.assert_close(logits, outputs[f"logits_{pooling}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, outputs[f"features_{pooling}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_an_autoencoder_gives_the_official_loss_and_mask_natively(tmp_path, outputs, norm_pix_loss):
    options = {"norm_pix_loss": norm_pix_loss, **HEADS, **DECODER_HEADS}
    conversion = convert_checkpoint(PRETRAINED, tmp_path, "livt-pretrain", **options)
    assert (conversion.kind, conversion.tensors, conversion.dropped) == ("autoencoder", 74, {})
    expected = outputs[f"mae_loss_norm_pix_{str(norm_pix_loss).lower()}"].item()
    for model_class in (ViTMAEForPreTraining, LivtMAEForPreTraining):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        with torch.no_grad():
            output = model.eval()(outputs["pixel_values"], noise=outputs["mae_noise"])
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)
        assert torch.equal(output.mask, outputs["mae_mask"])


def test_fine_tuning_starts_where_the_official_code_starts(tmp_path, outputs, autoencoder_dir):
    """`from_mae` on a converted autoencoder = the official classifier with that autoencoder's encoder tensors."""
    pretrained, _ = read_checkpoint(PRETRAINED)
    encoder = {
        name: tensor for name, tensor in pretrained.items() if name.startswith(("cls", "pos", "patch", "blocks"))
    }
    convert_classifier(changed(tmp_path, **encoder), tmp_path / "official")
    official = ViTForBalancedClassification.from_pretrained(tmp_path / "official").eval()
    ours = ViTForBalancedClassification.from_mae(autoencoder_dir, {str(label): 2 for label in range(12)}).eval()
    ours.classifier.load_state_dict(official.classifier.state_dict())
    ours.beit.pooler.load_state_dict(official.beit.pooler.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(outputs["pixel_values"]).logits, official(outputs["pixel_values"]).logits)


def test_an_encoder_alone_as_mae_publishes_it(tmp_path, autoencoder_dir):
    weights, _ = read_checkpoint(PRETRAINED)
    decoder = [name for name in weights if name.startswith(("decoder", "mask"))]
    path = changed(tmp_path, PRETRAINED, drop=decoder)
    assert convert_checkpoint(path, tmp_path / "encoder", "mae", **HEADS).kind == "encoder"
    encoder, info = ViTMAEModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info.values())
    whole = ViTMAEModel.from_pretrained(autoencoder_dir).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in encoder.state_dict().items())
    ViTForBalancedClassification.from_mae(tmp_path / "encoder", {"ant": 2, "bee": 1})


# The way back


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("livt_finetune_global_pool.pth", "livt-finetune"),
        ("livt_finetune_cls_token.pth", "livt-finetune"),
        ("livt_pretrain.pth", "livt-pretrain"),
    ],
)
def test_the_way_back_is_bit_identical_but_for_a_classifiers_key_bias(tmp_path, capsys, name, source):
    options = {**HEADS, **(DECODER_HEADS if source == "livt-pretrain" else {})}
    convert_checkpoint(FIXTURES / name, tmp_path / "model", source, **options)
    assert main(["convert", "--to", "official", str(tmp_path / "model"), str(tmp_path / "back.pth")]) == 0
    assert capsys.readouterr().out.startswith("wrote ")
    (original, _), (back, _) = read_checkpoint(FIXTURES / name), read_checkpoint(tmp_path / "back.pth")
    assert set(back) == set(original)
    for key, tensor in original.items():
        expected = tensor.clone()
        if source == "livt-finetune" and key.endswith("qkv.bias"):
            query, key_part, value = expected.chunk(3)
            assert key_part.any()
            expected = torch.cat([query, torch.zeros_like(key_part), value])
        assert torch.equal(back[key], expected), key


def test_the_way_back_takes_plain_models_only(tmp_path, capsys, classifier_dir):
    def error(*argv):
        assert main(["convert", "--to", "official", *map(str, argv)]) == 2
        return capsys.readouterr().err

    assert error(classifier_dir, FINETUNED) == f"error: {FINETUNED}: exists already; give the name of a new file\n"
    assert "holds no config.json" in error(tmp_path, tmp_path / "out.pth")
    config = json.loads((classifier_dir / "config.json").read_text())
    for field, value, message in (
        ("model_type", "vit", "is a 'vit' model; a classifier or autoencoder of ours is needed"),
        ("use_relative_position_bias", True, "use_relative_position_bias is True; this needs a plain ViT, with False"),
        ("layer_norm_eps", 1e-12, "layer_norm_eps is 1e-12; this needs a plain ViT, with 1e-06"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
        assert message in error(tmp_path, tmp_path / "out.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    native = AutoModelForImageClassification.from_pretrained(classifier_dir)
    native.save_pretrained(
        tmp_path, state_dict={k: v for k, v in native.state_dict().items() if k != "classifier.bias"}
    )
    assert "lacks 1 weights, such as classifier.bias" in error(tmp_path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


# Every tensor is accounted for


def test_the_key_map_names_every_tensor_of_both_sides_once():
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 8, "patch_size": 4}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
    for model, encoder_only in (
        (ViTForBalancedClassification(LivtConfig(**small)), False),
        (ViTForBalancedClassification(LivtConfig(**small, use_mean_pooling=False)), False),
        (LivtMAEForPreTraining(LivtMAEConfig(**small, **decoder)), False),
        (ViTMAEModel(LivtMAEConfig(**small, **decoder)), True),
    ):
        keys, state = key_map(model.config, encoder_only), model.state_dict()
        targets = [target for parts in keys.values() for target in parts if target is not None]
        assert len(targets) == len(set(targets))
        assert set(targets) == set(state)
        weights = to_official(state, keys)
        again, _ = to_native(weights, keys)
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_tensors_without_a_place_missing_ones_and_other_shapes_are_named(tmp_path):
    def error(**change):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the text is what each caller looks at
            convert_classifier(changed(tmp_path, **change), tmp_path / "out")
        assert str(caught.value).startswith(f"{tmp_path / 'changed.pth'}: ")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    ls = {f"blocks.{block}.ls1.gamma": torch.ones(48) for block in range(3)}
    assert error(**ls).endswith("without a place: blocks.0.ls1.gamma, blocks.1.ls1.gamma, blocks.2.ls1.gamma")
    assert error(drop=["head.bias"]).endswith("; missing: head.bias")
    assert "missing: blocks.1.attn.proj.bias; without a place: other" in error(
        drop=["blocks.1.attn.proj.bias"], other=torch.ones(1)
    )
    assert "beit.layers.0.mlp.fc1.bias would be (5,), the rest needs (192,)" in error(
        **{"blocks.0.mlp.fc1.bias": torch.ones(5)}
    )
    assert "blocks.2.attn.qkv.bias: (145,) does not split into 3 equal parts" in error(
        **{"blocks.2.attn.qkv.bias": torch.ones(145)}
    )
    assert "pos_embed: (1, 66, 48) is no square grid and CLS of width 48" in error(pos_embed=torch.ones(1, 66, 48))
    assert "patch_embed.proj.weight: (48, 3, 4, 2); (D, 3, P, P) is needed" in error(
        **{"patch_embed.proj.weight": torch.ones(48, 3, 4, 2)}
    )


# Sizes


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch_size", "image_size"),
    [
        (192, 12, 3, 16, 224),
        (384, 12, 6, 16, 224),
        (768, 12, 12, 16, 384),
        (1024, 24, 16, 16, 128),
        (1280, 32, 16, 14, 224),
    ],
)
def test_sizes_of_the_vit_family_come_from_the_weights(width, depth, heads, patch_size, image_size):
    weights = {
        "patch_embed.proj.weight": torch.empty(width, 3, patch_size, patch_size, device="meta"),
        "pos_embed": torch.empty(1, (image_size // patch_size) ** 2 + 1, width, device="meta"),
        "decoder_embed.weight": torch.empty(512, width, device="meta"),
        "decoder_blocks.0.mlp.fc1.weight": torch.empty(2048, 512, device="meta"),
        "decoder_blocks.7.mlp.fc1.weight": torch.empty(2048, 512, device="meta"),
        **{f"blocks.{i}.mlp.fc1.weight": torch.empty(4 * width, width, device="meta") for i in range(depth)},
    }
    assert encoder_fields(weights) == {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": image_size,
        "patch_size": patch_size,
        "layer_norm_eps": 1e-6,
    }
    assert encoder_fields(weights, num_attention_heads=8)["num_attention_heads"] == 8
    assert decoder_fields(weights) == {
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 8,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    }


def test_heads_that_the_width_does_not_tell_are_asked_for():
    weights, _ = read_checkpoint(PRETRAINED)
    with pytest.raises(ValueError, match="num_attention_heads: weights of width 48 .* give --num_attention_heads"):
        encoder_fields(weights)
    with pytest.raises(ValueError, match="decoder_num_attention_heads: weights of width 32 .* give --decoder"):
        decoder_fields(weights)
    with pytest.raises(ValueError, match="num_attention_heads: 5 does not divide the width 48"):
        encoder_fields(weights, num_attention_heads=5)
    with pytest.raises(ValueError, match="num_attention_heads: 0 does not divide"):
        encoder_fields(weights, num_attention_heads=0)


# What the checkpoint's own arguments say


def test_class_counts_and_loss_come_from_the_arguments_of_the_checkpoint(tmp_path):
    counts = list(range(120, 0, -10))
    path = changed(tmp_path, args={"cls_num": counts, "dataset": "iNat18", "loss": "margin_bce", "bal_tau": 1.05})
    conversion = convert_checkpoint(path, tmp_path / "model", "livt-finetune", **HEADS)
    assert conversion.notes == [LABEL_ORDER]
    assert conversion.dataset == "inat18"
    config = LivtConfig.from_pretrained(tmp_path / "model")
    assert config.ordered_class_counts() == {f"LABEL_{label}": count for label, count in enumerate(counts)}
    assert (config.loss, config.tau) == ("bal_bce", 1.0)  # the official Bal-BCE ignores bal_tau
    assert config.pretrained == "a masked autoencoder of XuZhengzhuo/LiVT"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert tuple(processor.image_mean) == (0.466, 0.471, 0.380)
    assert tuple(processor.image_std) == (0.195, 0.194, 0.192)
    assert processor.size["shortest_edge"] == 36  # int(32 / 0.875)
    assert processor.crop_size["height"] == processor.crop_size["width"] == 32


def test_balanced_cross_entropy_keeps_its_tau(tmp_path):
    config = convert_classifier(changed(tmp_path, args={"loss": "Bal_CE", "bal_tau": 1.05}), tmp_path / "model")
    assert (config.loss, config.tau) == ("bal_ce", 1.05)
    assert set(OFFICIAL_LOSSES.values()) <= set(LOSS_NAMES)


def test_arguments_that_do_not_fit_are_noted_and_not_used(tmp_path):
    path = changed(tmp_path, args={"cls_num": [3, 2, 1], "dataset": "pets", "loss": "mine"})
    conversion = convert_checkpoint(path, tmp_path / "model", "livt-finetune", **HEADS)
    assert conversion.notes == [
        "The list cls_num of the file does not have one count for each class; it is not used.",
        "The file does not tell its training loss; that of the source's method is assumed, bal_bce.",
        "The official code does not know the data set pets; images are normalised with the statistics of ImageNet "
        "(see --dataset).",
    ]
    assert LivtConfig.from_pretrained(tmp_path / "model").class_counts is None


def test_the_option_goes_before_the_argument(tmp_path):
    path = changed(tmp_path, args={"dataset": "iNat18"})
    convert_classifier(path, tmp_path / "model", dataset="cifar10-lt")
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "model").image_mean) == (0.4914, 0.4822, 0.4465)
    # Official pretraining has no statistics of its own for CIFAR.
    options = {**HEADS, **DECODER_HEADS, "dataset": "cifar10-lt"}
    convert_checkpoint(PRETRAINED, tmp_path / "mae", "livt-pretrain", **options)
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "mae").image_mean) == (0.485, 0.456, 0.406)


def test_the_pixel_target_is_that_of_the_arguments_or_is_assumed(tmp_path):
    options = {**HEADS, **DECODER_HEADS}
    path = changed(tmp_path, PRETRAINED, args={"norm_pix_loss": False, "mask_ratio": 0.5, "dataset": "ImageNet"})
    assert convert_checkpoint(path, tmp_path / "a", "mae", **options).notes == []
    config = LivtMAEForPreTraining.from_pretrained(tmp_path / "a").config
    assert (config.norm_pix_loss, config.mask_ratio) == (False, 0.5)
    path = changed(tmp_path, PRETRAINED, args={"dataset": "ImageNet"})
    (note,) = convert_checkpoint(path, tmp_path / "b", "mae", **options).notes
    assert note.startswith("The file does not tell whether it predicts pixels normalised per patch; it is assumed")
    assert LivtMAEForPreTraining.from_pretrained(tmp_path / "b").config.norm_pix_loss is True


# Files of the user

NAMES = [f"class {letter}" for letter in "lkjihgfedcba"]  # not in alphabetical order


@pytest.mark.parametrize(
    "text", ["\n".join(NAMES) + "\n\n", json.dumps(NAMES), json.dumps({str(i): name for i, name in enumerate(NAMES)})]
)
@pytest.mark.parametrize("form", ["by name", "list"])
def test_labels_and_counts_from_files(tmp_path, text, form):
    labels, counts = tmp_path / "labels", tmp_path / "counts.json"
    labels.write_text(text)
    expected = {name: 10 * (label + 1) for label, name in enumerate(NAMES)}
    by_name = dict(sorted(expected.items()))  # the order of a JSON object says nothing
    counts.write_text(json.dumps(by_name if form == "by name" else list(expected.values())))
    config = convert_classifier(FINETUNED, tmp_path / "model", labels=labels, class_counts=counts)
    assert [config.id2label[label] for label in range(12)] == NAMES
    assert list(config.ordered_class_counts().items()) == list(expected.items())


def test_without_files_classes_are_numbered(classifier_dir):
    config = LivtConfig.from_pretrained(classifier_dir)
    assert config.id2label == {label: f"LABEL_{label}" for label in range(12)}
    assert config.class_counts is None


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("labels", "a\nb", "labels: {file}: 2 names, but the classifier has 12 classes"),
        ("labels", "\n".join(["x"] * 12), "labels: {file}: 'x' stands there twice; give every class a name of its own"),
        ("labels", '{"0": "a", "2": "b"}', "labels: {file}: label '1' is missing; give {{label: name}} from 0 on"),
        ("labels", "[1, 2]", "labels: {file}: give a list of names, {{label: name}}, or one name a line"),
        ("class_counts", "[1, 2]", "class_counts: {file}: 2 counts for a classifier of 12 classes"),
        ("class_counts", "{", "class_counts: {file}: cannot be read as JSON"),
        ("class_counts", "3", "class_counts: {file}: give {{name: count}}, or a list of counts in label order"),
        (
            "class_counts",
            '{"ant": 3}',
            "class names of the classes (--labels tells their names and order) and ",
        ),
        ("class_counts", "[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", "class_counts: class 'LABEL_0' has count 0; every"),
    ],
)
def test_wrong_files_are_named(tmp_path, capsys, option, text, message):
    file = tmp_path / "file"
    file.write_text(text)
    argv = ["convert", "--source", "livt-finetune", "--num_attention_heads", "3", f"--{option}", str(file)]
    assert main([*argv, str(FINETUNED), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.format(file=file))
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_labels_are_no_option_of_an_autoencoder(tmp_path):
    options = {**HEADS, **DECODER_HEADS, "labels": tmp_path / "names"}
    with pytest.raises(ValueError, match="^labels: .*livt_pretrain.pth holds no classifier; leave the option out"):
        convert_checkpoint(PRETRAINED, tmp_path / "out", "livt-pretrain", **options)


# Safety


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Harmless:
    pass


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "in the arguments"])
def test_a_malicious_pickle_neither_runs_nor_loads(tmp_path, form):
    attack, path = Attack(tmp_path / "attacked"), tmp_path / "in.pth"
    weights, _ = read_checkpoint(FINETUNED)
    content = {"model": weights, "args": attack}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": {}, "args": attack}, protocol=2))
    elif form == "in the arguments":
        torch.save({"model": weights, "args": argparse.Namespace(dataset=attack)}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"refused, nothing in it was run: it holds (posix|nt)\.mkdir; only tensors"):
        convert_checkpoint(path, tmp_path / "out", "livt-finetune", **HEADS)
    assert not (tmp_path / "attacked").exists()
    assert not (tmp_path / "out").exists()
    with path.open("rb") as file:  # the attack is a real one
        torch.load(file, weights_only=False) if form != "pickle" else pickle.load(file)
    assert (tmp_path / "attacked").exists()


def test_any_other_class_is_refused_by_name(tmp_path):
    torch.save({"model": {}, "args": Harmless()}, tmp_path / "in.pth")
    with pytest.raises(
        ValueError, match=r"it holds test_conversion\.Harmless; only tensors, plain values and argparse"
    ):
        read_checkpoint(tmp_path / "in.pth")


def test_a_file_of_old_torch_converts_too(tmp_path, outputs):
    weights, _ = read_checkpoint(FINETUNED)
    torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert_checkpoint(tmp_path / "old.pth", tmp_path / "model", "livt-finetune", **HEADS)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        logits = model(outputs["pixel_values"]).logits
    torch.testing.assert_close(logits, outputs["logits_global_pool"], rtol=1e-5, atol=1e-5)


DAMAGED = "is damaged, or no checkpoint of torch.save; download it again"


def _write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (FINETUNED.read_bytes()[:200_000], DAMAGED),
        (b"<!DOCTYPE html> quota exceeded", DAMAGED),
        (pickle.dumps({"model": {}}, protocol=2), DAMAGED),
        ([1, 2], "has no 'model'; give a checkpoint as the official code saves it"),
        (
            {"state_dict": {}, "epoch": 3},
            "has no 'model' (it holds state_dict, epoch); give a checkpoint as the official",
        ),
        ({"model": {"a": 3}}, "'a' in 'model' is no tensor of floating-point numbers"),
        ({"model": {"a": torch.ones(2, dtype=torch.int64)}}, "'a' in 'model' is no tensor of floating-point numbers"),
        ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "tensor a holds values that are not finite"),
        (
            {"model": {"a": torch.ones(2), "b": torch.ones(2).half()}},
            "its tensors are of several types, torch.float16, torch.float32; make them the same",
        ),
        (
            {"model": {"layer.weight": torch.ones(2)}},
            "--source livt-finetune: its 'model' is no ViT of the official code",
        ),
    ],
)
def test_files_that_are_no_checkpoints_get_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "in.pth"
    _write(path, content)
    assert main(["convert", "--source", "livt-finetune", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_files_folders_and_wrong_kinds_are_named(tmp_path, capsys):
    def error(source, path, output="out"):
        assert main(["convert", "--source", source, str(path), str(tmp_path / output)]) == 2
        return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")

    missing = tmp_path / "missing.pth"
    assert error("mae", missing) == f"{missing}: there is no such file; give an official checkpoint (.pth)"
    assert error("mae", tmp_path) == f"{tmp_path}: there is no such file; give an official checkpoint (.pth)"
    assert error("livt-finetune", PRETRAINED) == (
        f"{PRETRAINED}: --source livt-finetune needs the weights of a whole classifier, this is an autoencoder; use "
        "--source livt-pretrain or mae"
    )
    assert error("livt-pretrain", FINETUNED).endswith("this is a classifier; use --source livt-finetune or mae")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("mine")
    assert error("mae", FINETUNED, "full") == f"{tmp_path / 'full'}: exists and is not empty; give a new folder"
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["photo.jpg"]
    assert kind_of({}) == "unknown"


# Command


def test_the_command_says_what_became_of_every_tensor(tmp_path, capsys):
    argv = ["convert", "--source", "mae", "--num_attention_heads", "3", "--decoder_num_attention_heads", "4"]
    assert main([*argv, "--norm_pix_loss", "false", str(PRETRAINED), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "autoencoder: 74 tensors, each of them has its place",
        "note: The file does not tell its data set; images are normalised with the statistics of ImageNet (see "
        "--dataset).",
        f"{tmp_path / 'out'} holds the autoencoder, its image processor and a card",
    ]
    assert LivtMAEForPreTraining.from_pretrained(tmp_path / "out").config.norm_pix_loss is False
    assert (
        main(
            ["convert", "--source", "livt-finetune", "--num_attention_heads", "3", str(FINETUNED), str(tmp_path / "b")]
        )
        == 0
    )
    assert f"left out: blocks.0.attn.qkv.bias (k) and the like (3): {NO_KEY_BIAS}" in capsys.readouterr().out


def test_the_choices_of_the_command_are_those_of_the_package(capsys):
    for option, known in (("--source", [*SOURCES, "timm"]), ("--dataset", list(DATA_SETS))):
        assert main(["convert", "--source", "mae", option, "no", "in", "out"]) == 2
        choices = capsys.readouterr().err.split("choose from ")[1].split(")")[0]
        assert choices.replace("'", "").split(", ") == known
    assert main(["convert", "in", "out"]) == 2
    assert "one of the arguments --source --to is required" in capsys.readouterr().err


# Card


def test_the_card_whole(tmp_path):
    args = {"cls_num": list(range(120, 0, -10)), "dataset": "ImageNet-LT", "loss": "Bal_BCE"}
    convert_classifier(changed(tmp_path, args=args), tmp_path / "livt-tiny")
    card = (tmp_path / "livt-tiny" / "README.md").read_text()
    sha256 = card.split("SHA-256 of the file: `")[1].split("`")[0]
    assert len(sha256) == 64
    assert card.replace(sha256, "SHA256") == (FIXTURES / "conversion_card.md").read_text()


def figures(source, kind, dataset, **config):
    base = {"hidden_size": 768, "patch_size": 16, "image_size": 224, "loss": "bal_bce"}
    return published_figures(
        Conversion(source, kind, "x.pth", 1, {}, dataset=dataset), argparse.Namespace(**base | config)
    )


def test_published_figures_are_the_sources_and_only_where_the_kind_matches():
    not_ours = "They are the source's, not ours: this file was converted, not evaluated."
    text = figures("livt-finetune", "classifier", "inat18", image_size=384)
    assert "LiVT's authors published for ViT-B/16 at 384 px on iNat18" in text
    assert "| Top-1 accuracy | 81.0 | 83.2 | 81.5 | 79.7 |" in text
    assert text.endswith(not_ours)
    assert "| Top-1 accuracy | 60.9 | 73.6 | 56.4 | 41.0 |" in figures("livt-finetune", "classifier", "imagenet-lt")
    text = figures("livt-pretrain", "autoencoder", "inat18", image_size=128)
    assert "ends, after 800 epochs, with a training loss of 0.5626." in text
    assert text.endswith(not_ours)
    for source, kind, size, expected in (
        ("mae", "encoder", {}, "83.6 %"),
        ("mae", "autoencoder", {"hidden_size": 1024}, "85.9 %"),
        ("mae", "classifier", {"hidden_size": 1280, "patch_size": 14}, "86.9 %"),
    ):
        text = figures(source, kind, "imagenet", **size)
        assert expected in text
        assert text.endswith(not_ours)
    for source, kind, dataset, other in (
        ("livt-finetune", "classifier", "imagenet-lt", {"hidden_size": 1024}),
        ("livt-finetune", "classifier", "imagenet-lt", {"loss": "ce"}),
        ("livt-finetune", "classifier", "imagenet-lt", {"image_size": 256}),
        ("livt-finetune", "classifier", None, {}),
        ("livt-pretrain", "autoencoder", "imagenet-lt", {"patch_size": 8}),
        ("mae", "encoder", "imagenet-lt", {}),
        ("timm", "classifier", "imagenet-lt", {}),
    ):
        assert figures(source, kind, dataset, **other).startswith("None are known for this kind of checkpoint")


@pytest.mark.parametrize(("source", "licence"), [("livt-finetune", "mit"), ("mae", "cc-by-nc-4.0")])
def test_the_licence_is_the_sources(source, licence):
    config = argparse.Namespace(image_size=224, num_labels=2, hidden_size=8, patch_size=4, loss="ce")
    card = conversion_card(Conversion(source, "classifier", "a`b\nc.pth", 1, {}), config, 10, "x<b>y")
    assert f"\nlicense: {licence}\n" in card
    assert "# x&#60;b&#62;y" in card
    assert "`a b c.pth`" in card
    assert ("forbids commercial use" in card) == (source == "mae")


# Memory


def test_a_conversion_needs_less_than_twice_the_file_in_memory(tmp_path):
    """In a process of its own, after a small conversion that imports everything; 4 blocks of ViT-B's width, 116 MB."""
    code = """
import resource, sys, torch
from pathlib import Path
from livt_hf.conversion import convert_checkpoint
from livt_hf.official import read_checkpoint
fixture, folder, megabytes = Path(sys.argv[1]), Path(sys.argv[2]), 1024 if sys.platform == "linux" else 1 << 20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 << 20) // megabytes
convert_checkpoint(fixture, folder / "small", "livt-finetune", num_attention_heads=3)
before = peak()
convert_checkpoint(folder / "large.pth", folder / "large", "livt-finetune")
print((peak() - before) / (folder / "large.pth").stat().st_size)
"""
    fields = {"hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "num_labels": 10}
    with torch.device("meta"):
        model = ViTForBalancedClassification(LivtConfig(**fields))
    weights = to_official({name: torch.ones(t.shape) for name, t in model.state_dict().items()}, key_map(model.config))
    torch.save({"model": weights}, tmp_path / "large.pth")
    argv = [sys.executable, "-c", code, str(FINETUNED), str(tmp_path)]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < 1.7  # 1.3 for ViT-B and ViT-L, whose fixed share is smaller
