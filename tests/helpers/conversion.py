"""Official checkpoints, original and modified, and their conversion."""

import argparse
import re

import torch

from helpers.paths import FIXTURES
from livt_hf import LivtConfig
from livt_hf.conversion.official import convert_checkpoint, read_checkpoint
from livt_hf.evaluation.predict import predict_images

FINETUNED = FIXTURES / "livt_finetune_global_pool.pth"
PRETRAINED = FIXTURES / "livt_pretrain.pth"
HEADS = {"num_attention_heads": 3}  # width 48 is outside the ViT family
POOLINGS = ("global_pool", "cls_token")
NAMES = ["n01 <cat>", "dög", *(f"class {label}" for label in range(10))]
DECODER_HEADS = {"decoder_num_attention_heads": 4}


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


def check_usage(card, model, capsys):
    """Run the Python code of a card, which classifies photo.jpg: its five classes must be those of the model."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    printed = [line.split("% ", 1) for line in capsys.readouterr().out.splitlines()]
    (expected,) = predict_images(model, ["photo.jpg"])
    assert [name for _, name in printed] == [prediction["label"] for prediction in expected["predictions"]]
    for (share, _), prediction in zip(printed, expected["predictions"], strict=True):
        assert abs(float(share) - 100 * prediction["score"]) < 1.0  # PIL and torch round differently in a resize
