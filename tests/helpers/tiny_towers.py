"""Tiny random backbones without a classifier, as foundation models are published; those that this release of
transformers lacks are left out."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 2,
    "intermediate_size": 32,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 96,
    "max_position_embeddings": 16,
    # CLIP's text tower pools at the first of these
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_DINO = {name: value for name, value in VISION.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
_PATCHES = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
_CLIP = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 8}
_SIGLIP_TEXT = {**TEXT, "projection_size": 16}
_TIMM = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}

# name -> model, its config, the config's fields, and the native classifier
TOWERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "clip": ("CLIPModel", "CLIPConfig", _CLIP, "CLIPForImageClassification"),
    "clip_vision": ("CLIPVisionModel", "CLIPVisionConfig", VISION, "CLIPForImageClassification"),
    "clip_projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION, "CLIPForImageClassification"),
    "metaclip_2": ("MetaClip2Model", "MetaClip2Config", _CLIP, "MetaClip2ForImageClassification"),
    "metaclip_2_vision": (
        "MetaClip2VisionModel",
        "MetaClip2VisionConfig",
        VISION,
        "MetaClip2ForImageClassification",
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {"vision_config": VISION, "text_config": _SIGLIP_TEXT},
        "SiglipForImageClassification",
    ),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", VISION, "SiglipForImageClassification"),
    "siglip2": (
        "Siglip2Model",
        "Siglip2Config",
        {"vision_config": _PATCHES, "text_config": _SIGLIP_TEXT},
        "SiglipForImageClassification",
    ),
    "siglip2_vision": ("Siglip2VisionModel", "Siglip2VisionConfig", _PATCHES, "SiglipForImageClassification"),
    "dinov2": ("Dinov2Model", "Dinov2Config", _DINO, "Dinov2ForImageClassification"),
    "dinov2_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        _DINO,
        "Dinov2WithRegistersForImageClassification",
    ),
    "vit": ("ViTModel", "ViTConfig", VISION, "ViTForImageClassification"),
    "ijepa": ("IJepaModel", "IJepaConfig", VISION, "IJepaForImageClassification"),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", VISION, "BeitForImageClassification"),
    "timm": (
        "TimmWrapperModel",
        "TimmWrapperConfig",
        {"architecture": "vit_tiny_patch16_224", "model_args": _TIMM},
        "TimmWrapperForImageClassification",
    ),
    "timm_dinov3": (
        "TimmWrapperModel",
        "TimmWrapperConfig",
        {"architecture": "vit_small_patch16_dinov3", "model_args": _TIMM},
        "TimmWrapperForImageClassification",
    ),
}
AVAILABLE = [name for name, (model, *_) in TOWERS.items() if hasattr(transformers, model)]


def tiny_tower(name: str, **fields: Any) -> PreTrainedModel:
    """A backbone with random weights, the same on every call."""
    model_class, config_class, sizes, _ = TOWERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes, **fields))
    with torch.no_grad():  # visible features, whatever the initialization
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def save_tower(name: str, folder: Path, **fields: Any) -> Path:
    tiny_tower(name, **fields).save_pretrained(folder)
    return folder


def native_class(name: str) -> type:
    """The classifier of transformers that a backbone becomes."""
    return getattr(transformers, TOWERS[name][3])


def save_tokenizer(folder: Path, name: str) -> Path:
    """A tokenizer of single characters: CLIP's with its two files, else one of the tokenizers library."""
    characters = list("abcdefghijklmnopqrstuvwxyz0123456789.")
    if name.startswith("clip"):
        tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{character}</w>" for character in characters)]
        (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
        return folder
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex("."), "isolated")])
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    return folder
