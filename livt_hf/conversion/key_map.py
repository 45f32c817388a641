"""Two-way key map between the official layout (LiVT and MAE, both on timm's ViT) and transformers' models.

Official tensor names are those of MAE's `models_vit.py`, which timm's own ViT shares, and `models_mae.py`.

Legend: D width, P patch size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..class_names import abbreviate
from ..models.configuration_livt import VIT_SIZES, check_patch_grid
from ..models.modeling_livt import NO_KEY_BIAS

LAYER_NORM_EPS = 1e-6  # of both official codes and of timm's ViT
# Settings with which a BEiT is a plain ViT, the architecture of the official code and of timm's ViT
_PLAIN_VIT = {
    "use_absolute_position_embeddings": True,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mask_token": False,
    "layer_scale_init_value": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": LAYER_NORM_EPS,
}
# The number of heads cannot be inferred from the weights, but from the width of the known sizes.
HEADS_OF_WIDTH = {size["hidden_size"]: size["num_attention_heads"] for size in VIT_SIZES.values()}
HEADS_OF_DECODER_WIDTH = {512: 16}

# Official module or parameter -> native one; a fused layer is split in three
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": _QKV,
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
}
_DECODER_TOKENS = {"mask_token": "decoder.mask_token", "decoder_pos_embed": "decoder.decoder_pos_embed"}
_DECODER_MODULES = {name: (f"decoder.{name}",) for name in ("decoder_embed", "decoder_norm", "decoder_pred")}

KeyMap = dict[str, tuple[str | None, ...]]


def key_map(config: PreTrainedConfig, encoder_only: bool = False) -> KeyMap:
    """Map every official tensor of a model to the native tensors that it is split into, equally along dimension 0.

    None is a part that the native model does not have: the key third of a classifier's `attn.qkv.bias`
    (`NO_KEY_BIAS`).

    Args:
        config: of a `BeitForImageClassification` that is a plain ViT, or of a `ViTMAEForPreTraining`.
        encoder_only: the model of a `vit_mae` config is a `ViTMAEModel`, without a decoder.
    """
    if config.model_type == "beit":
        keys = _encoder_keys("beit.", config.num_hidden_layers)
        for block in range(config.num_hidden_layers):
            query, _, value = keys[f"blocks.{block}.attn.qkv.bias"]
            keys[f"blocks.{block}.attn.qkv.bias"] = (query, None, value)
        norm = {"fc_norm": ("beit.pooler.layernorm",)} if config.use_mean_pooling else {"norm": ("beit.layernorm",)}
        return keys | _parameters({**norm, "head": ("classifier",)})
    if encoder_only:
        return _encoder_keys("", config.num_hidden_layers) | _parameters({"norm": ("layernorm",)})
    return {
        **_encoder_keys("vit.", config.num_hidden_layers),
        **_parameters({"norm": ("vit.layernorm",)}),
        **{name: (native,) for name, native in _DECODER_TOKENS.items()},
        **_parameters(_DECODER_MODULES),
        **_block_keys("decoder_blocks", "decoder.decoder_layers", config.decoder_num_hidden_layers),
    }


def _encoder_keys(prefix: str, depth: int) -> KeyMap:
    embeddings: KeyMap = {name: (prefix + native,) for name, native in _EMBEDDINGS.items()}
    return embeddings | _block_keys("blocks", f"{prefix}layers", depth)


def _block_keys(official: str, native: str, depth: int) -> KeyMap:
    return _parameters(
        {
            f"{official}.{block}.{module}": tuple(f"{native}.{block}.{part}" for part in parts)
            for block in range(depth)
            for module, parts in _BLOCK.items()
        }
    )


def _parameters(modules: Mapping[str, tuple[str, ...]]) -> KeyMap:
    return {
        f"{name}.{kind}": tuple(f"{part}.{kind}" for part in parts)
        for name, parts in modules.items()
        for kind in ("weight", "bias")
    }


def to_native(weights: Mapping[str, Tensor], keys: KeyMap) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Native tensors (views of the official ones), and the reason for each part that is dropped.

    Raises:
        ValueError: missing or unexpected tensors.
    """
    missing, unexpected = sorted(set(keys) - set(weights)), sorted(set(weights) - set(keys))
    if missing or unexpected:
        differences = {"missing": missing, "unexpected": unexpected}
        listed = (f"{what}: {abbreviate(names, 3)}" for what, names in differences.items() if names)
        raise ValueError(f"its tensors do not match this architecture; {'; '.join(listed)}")
    native, dropped = {}, {}
    for name, targets in keys.items():
        for part, target, tensor in zip("qkv", targets, _split(name, weights[name], len(targets)), strict=False):
            if target is None:
                dropped[f"{name} ({part})"] = NO_KEY_BIAS
            else:
                native[target] = tensor
    return native, dropped


def to_official(native: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """The official `model` dict: the inverse of `to_native`, with zeros for the dropped parts.

    Raises:
        ValueError: missing or unexpected native tensors.
    """
    expected = {target for targets in keys.values() for target in targets if target is not None}
    if expected != set(native):
        raise ValueError(f"its tensors do not match a plain ViT: {abbreviate(sorted(expected ^ set(native)), 3)}")
    official = {}
    for name, targets in keys.items():
        present = next(native[target] for target in targets if target is not None)
        parts = [torch.zeros_like(present) if target is None else native[target] for target in targets]
        official[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return official


def _split(name: str, tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    if tensor.ndim and tensor.shape[0] % parts:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not split into {parts} equal parts")
    return tensor.chunk(parts) if parts > 1 else (tensor,)


def kind_of(weights: Mapping[str, Tensor]) -> str:
    """Kind of a model, inferred from its tensor names: "classifier", "autoencoder", "encoder" or "unknown"."""
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"} <= set(weights):
        return "unknown"
    if "head.weight" in weights:
        return "classifier"
    return "autoencoder" if {"decoder_embed.weight", "decoder_blocks.0.mlp.fc1.weight"} <= set(weights) else "encoder"


def encoder_fields(weights: Mapping[str, Tensor], num_attention_heads: int | None = None) -> dict[str, Any]:
    """Config fields of the encoder, inferred from the shapes of its tensors.

    Raises:
        ValueError: the number of heads is needed, or a shape is not that of a plain ViT.
    """
    projection, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    if projection.ndim != 4 or projection.shape[1] != 3 or projection.shape[2] != projection.shape[3]:
        raise ValueError(f"patch_embed.proj.weight: shape {tuple(projection.shape)} instead of (D, 3, P, P)")
    width, patch_size = projection.shape[0], projection.shape[3]
    grid = round((positions.shape[1] - 1) ** 0.5) if positions.ndim == 3 else 0
    if positions.shape != (1, grid * grid + 1, width):
        raise ValueError(f"pos_embed: shape {tuple(positions.shape)} is not CLS and a square grid of width {width}")
    check_patch_grid(grid * patch_size, patch_size)
    return {
        "hidden_size": width,
        "num_hidden_layers": _depth(weights, "blocks"),
        "num_attention_heads": _heads(width, num_attention_heads, HEADS_OF_WIDTH, "num_attention_heads"),
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "layer_norm_eps": LAYER_NORM_EPS,
    }


def decoder_fields(weights: Mapping[str, Tensor], num_attention_heads: int | None = None) -> dict[str, Any]:
    """Config fields of a masked autoencoder's decoder, inferred as in `encoder_fields`."""
    width = weights["decoder_embed.weight"].shape[0]
    option = "decoder_num_attention_heads"
    return {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": _depth(weights, "decoder_blocks"),
        option: _heads(width, num_attention_heads, HEADS_OF_DECODER_WIDTH, option),
        "decoder_intermediate_size": weights["decoder_blocks.0.mlp.fc1.weight"].shape[0],
    }


def _depth(weights: Mapping[str, Tensor], blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in weights)
    return 1 + max(int(match[1]) for match in found if match)


def _heads(width: int, given: int | None, known: Mapping[int, int], option: str) -> int:
    heads = known.get(width) if given is None else given
    if heads is None:
        raise ValueError(f"{option}: cannot be inferred from the width {width}; give --{option}")
    if heads < 1 or width % heads:
        raise ValueError(f"{option}: {heads} does not divide the width {width}; give the number used in training")
    return heads


def check_plain_vit(model: str | Path, config: Any) -> None:
    """ValueError unless a BEiT is a plain ViT, as LiVT's classifier is."""
    for name, value in _PLAIN_VIT.items():
        if getattr(config, name) != value:
            raise ValueError(f"{model}: is not a plain ViT: {name} is {getattr(config, name)!r} instead of {value!r}")
