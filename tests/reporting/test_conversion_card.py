"""The card of a converted checkpoint: whole, with the figures and the license of its source."""

import argparse

import pytest

from helpers.conversion import changed, convert_classifier
from helpers.paths import FIXTURES
from livt_hf.conversion.sources import Conversion, conversion_card, published_figures


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
    not_ours = "These are the source's results: this file was converted, not evaluated."
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


@pytest.mark.parametrize(("source", "license"), [("livt-finetune", "mit"), ("mae", "cc-by-nc-4.0")])
def test_the_license_is_the_sources(source, license):
    config = argparse.Namespace(image_size=224, num_labels=2, hidden_size=8, patch_size=4, loss="ce")
    card = conversion_card(Conversion(source, "classifier", "a`b\nc.pth", 1, {}), config, 10, "x<b>y")
    assert f"\nlicense: {license}\n" in card
    assert "# x&#60;b&#62;y" in card
    assert "`a b c.pth`" in card
    assert ("forbids commercial use" in card) == (source == "mae")
