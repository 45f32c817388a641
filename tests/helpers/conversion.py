"""Official checkpoints, original and modified, and their conversion."""

import argparse

import torch

from helpers.paths import FIXTURES
from livt_hf import LivtConfig
from livt_hf.conversion.official import convert_checkpoint, read_checkpoint

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
