"""Inputs of a conversion: sizes, the checkpoint's own arguments, the user's files; one line for each error."""

import json
import pickle

import pytest
import torch
from transformers import AutoImageProcessor

from helpers.conversion import DECODER_HEADS, FINETUNED, HEADS, PRETRAINED, changed, convert_classifier
from livt_hf import LivtConfig, LivtMAEForPreTraining
from livt_hf.cli import main
from livt_hf.conversion.key_map import decoder_fields, encoder_fields, kind_of
from livt_hf.conversion.native import LABEL_ORDER
from livt_hf.conversion.official import OFFICIAL_LOSSES, convert_checkpoint, read_checkpoint
from livt_hf.conversion.sources import DATASETS, SOURCES
from livt_hf.losses import LOSS_NAMES
from livt_hf.models.modeling_livt import NO_KEY_BIAS

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


def test_heads_that_cannot_be_inferred_are_required():
    weights, _ = read_checkpoint(PRETRAINED)
    with pytest.raises(
        ValueError, match="num_attention_heads: cannot be inferred from the width 48; give --num_attention_heads"
    ):
        encoder_fields(weights)
    with pytest.raises(
        ValueError, match="decoder_num_attention_heads: cannot be inferred from the width 32; give --decoder"
    ):
        decoder_fields(weights)
    with pytest.raises(ValueError, match="num_attention_heads: 5 does not divide the width 48"):
        encoder_fields(weights, num_attention_heads=5)
    with pytest.raises(ValueError, match="num_attention_heads: 0 does not divide"):
        encoder_fields(weights, num_attention_heads=0)


# The checkpoint's own arguments


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
        "The list cls_num of the file does not have one count per class and is not used.",
        "The file does not record its training loss; that of the source's method, bal_bce, is assumed.",
        "The dataset pets is unknown; images are normalized with the statistics of ImageNet (see --dataset).",
    ]
    assert LivtConfig.from_pretrained(tmp_path / "model").class_counts is None


def test_the_option_overrides_the_argument(tmp_path):
    path = changed(tmp_path, args={"dataset": "iNat18"})
    convert_classifier(path, tmp_path / "model", dataset="cifar10-lt")
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "model").image_mean) == (0.4914, 0.4822, 0.4465)
    # Official pretraining has no statistics for CIFAR.
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
    assert note.startswith("The file does not record whether it predicts pixels normalized per patch; this is assumed")
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
    by_name = dict(sorted(expected.items()))  # the order of a JSON object is ignored
    counts.write_text(json.dumps(by_name if form == "by name" else list(expected.values())))
    config = convert_classifier(FINETUNED, tmp_path / "model", labels=labels, class_counts=counts)
    assert [config.id2label[label] for label in range(12)] == NAMES
    assert list(config.ordered_class_counts().items()) == list(expected.items())


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("labels", "a\nb", "labels: {file}: 2 names, but the classifier has 12 classes"),
        (
            "labels",
            "\n".join(["x"] * 12),
            "labels: {file}: 'x' is repeated; give every class a unique name with --labels",
        ),
        ("labels", '{"0": "a", "2": "b"}', "labels: {file}: label '1' is missing; give {{label: name}} starting at 0"),
        ("labels", "[1, 2]", "labels: {file}: give a list of names, {{label: name}}, or one name per line"),
        ("class_counts", "[1, 2]", "class_counts: {file}: 2 counts for a classifier of 12 classes"),
        ("class_counts", "{", "class_counts: {file}: cannot be read as JSON"),
        ("class_counts", "3", "class_counts: {file}: give {{name: count}}, or a list of counts in label order"),
        (
            "class_counts",
            '{"ant": 3}',
            "class names of the classes (see --labels) and ",
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


def test_labels_are_refused_for_an_autoencoder(tmp_path):
    options = {**HEADS, **DECODER_HEADS, "labels": tmp_path / "names"}
    with pytest.raises(ValueError, match="^labels: .*livt_pretrain.pth has no classifier; leave the option out"):
        convert_checkpoint(PRETRAINED, tmp_path / "out", "livt-pretrain", **options)


# Files that are not checkpoints


DAMAGED = "is damaged or not a torch.save checkpoint; download it again"


def _write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (FINETUNED.read_bytes()[:200_000], DAMAGED),
        (b"<!DOCTYPE html> quota exceeded", DAMAGED),
        (pickle.dumps({"model": {}}, protocol=2), DAMAGED),
        ([1, 2], "has no 'model'; give a checkpoint saved by the official code"),
        (
            {"state_dict": {}, "epoch": 3},
            "has no 'model' (only state_dict, epoch); give a checkpoint saved by the official",
        ),
        ({"model": {"a": 3}}, "'a' in 'model' is not a floating-point tensor"),
        ({"model": {"a": torch.ones(2, dtype=torch.int64)}}, "'a' in 'model' is not a floating-point tensor"),
        ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "tensor a has non-finite values"),
        (
            {"model": {"a": torch.ones(2), "b": torch.ones(2).half()}},
            "its tensors have several dtypes, torch.float16, torch.float32; cast them to one",
        ),
        (
            {"model": {"layer.weight": torch.ones(2)}},
            "--source livt-finetune: its 'model' is not a ViT of the official code",
        ),
    ],
)
def test_files_that_are_not_checkpoints_get_one_line(tmp_path, capsys, content, message):
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
        f"{PRETRAINED}: --source livt-finetune needs the weights of a complete classifier, but this is an autoencoder; "
        "use --source livt-pretrain or mae"
    )
    assert error("livt-pretrain", FINETUNED).endswith("this is a classifier; use --source livt-finetune or mae")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("mine")
    assert error("mae", FINETUNED, "full") == f"output_dir: '{tmp_path / 'full'}' is not empty; name a new folder"
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["photo.jpg"]
    assert kind_of({}) == "unknown"


# Command


def test_the_command_accounts_for_every_tensor(tmp_path, capsys):
    argv = ["convert", "--source", "mae", "--num_attention_heads", "3", "--decoder_num_attention_heads", "4"]
    assert main([*argv, "--norm_pix_loss", "false", str(PRETRAINED), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "autoencoder: all 74 tensors were mapped",
        "note: The file does not record its dataset; images are normalized with the statistics of ImageNet (see "
        "--dataset).",
        f"{tmp_path / 'out'} contains the autoencoder, its image processor and a card",
    ]
    assert LivtMAEForPreTraining.from_pretrained(tmp_path / "out").config.norm_pix_loss is False
    assert (
        main(
            ["convert", "--source", "livt-finetune", "--num_attention_heads", "3", str(FINETUNED), str(tmp_path / "b")]
        )
        == 0
    )
    assert f"dropped: 3, such as blocks.0.attn.qkv.bias (k): {NO_KEY_BIAS}" in capsys.readouterr().out


def test_the_choices_of_the_command_are_those_of_the_package(capsys):
    for option, known in (("--source", [*SOURCES, "timm"]), ("--dataset", list(DATASETS))):
        assert main(["convert", "--source", "mae", option, "no", "in", "out"]) == 2
        assert capsys.readouterr().err.rstrip("\n").split("known: ")[1].split(", ") == known
    assert main(["convert", "in", "out"]) == 2
    assert "source: give either --source (the format of IN) or --to official" in capsys.readouterr().err
