"""Reading the official checkpoints of `../shared/reference` in tests: official tensor names -> those of the modules."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference numbers are not on this machine")

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_REST = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
}


def load_official(name: str) -> dict[str, Tensor]:
    """The weights of an official checkpoint; beside tensors it holds its training arguments, a Namespace."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(REFERENCE / name, weights_only=True)["model"]


def to_encoder(official: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Encoder weights, named as in `ViTMAEModel` and `BeitModel`, behind a prefix such as ``vit.``."""
    weights = {}
    for name, tensor in official.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block:
            weights |= _block(f"{prefix}layers.{block[1]}.", block[2], block[3], tensor)
        elif (stem := re.sub(r"\.(weight|bias)$", "", name)) in _REST:
            weights[prefix + _REST[stem] + name[len(stem) :]] = tensor
    return weights


def to_decoder(official: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in official.items():
        block = re.fullmatch(r"decoder_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block:
            weights |= _block(f"decoder.decoder_layers.{block[1]}.", block[2], block[3], tensor)
        elif name.startswith("decoder_") or name == "mask_token":
            weights[f"decoder.{name}"] = tensor
    return weights


def _block(prefix: str, part: str, kind: str, tensor: Tensor) -> dict[str, Tensor]:
    if part == "attn.qkv":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}attention.{letter}_proj.{kind}": third for letter, third in thirds}
    return {f"{prefix}{_BLOCK[part]}.{kind}": tensor}
