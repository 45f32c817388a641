"""Tiny random image classifiers of common families, saved as checkpoints."""

from pathlib import Path

import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
_MLP = {"intermediate_size": 32}
_STAGES = {"image_size": 8, "patch_size": 1, "depths": [1, 2]}
_TIMM_VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
_TIMM_CONVNEXT = {"dims": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "patch_size": 1}
_TIMM_SWIN = {"img_size": 8, "patch_size": 1, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}

CLASSES = {
    "vit": (ViTForImageClassification, ViTConfig, {**_VIT, **_MLP}),
    "deit": (DeiTForImageClassification, DeiTConfig, {**_VIT, **_MLP}),
    "swin": (
        SwinForImageClassification,
        SwinConfig,
        {**_STAGES, "embed_dim": 8, "num_heads": [1, 2], "window_size": 4},
    ),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, {**_VIT, "mlp_ratio": 2}),
    "convnext": (ConvNextForImageClassification, ConvNextConfig, {**_STAGES, "hidden_sizes": [8, 16], "num_stages": 2}),
    "beit": (BeitForImageClassification, BeitConfig, {**_VIT, **_MLP, "use_relative_position_bias": True}),
    "timm": (
        TimmWrapperForImageClassification,
        TimmWrapperConfig,
        {"architecture": "vit_tiny_patch16_224", "model_args": _TIMM_VIT},
    ),
    "timm_convnext": (
        TimmWrapperForImageClassification,
        TimmWrapperConfig,
        {"architecture": "convnext_atto", "model_args": _TIMM_CONVNEXT},
    ),
    "timm_swin": (
        TimmWrapperForImageClassification,
        TimmWrapperConfig,
        {"architecture": "swin_tiny_patch4_window7_224", "model_args": _TIMM_SWIN},
    ),
}
FAMILIES = list(CLASSES)[:7]


def tiny(family: str, num_labels: int = 10, **options) -> PreTrainedModel:
    """A model with random weights, the same on every call."""
    model_class, config_class, sizes = CLASSES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**sizes, num_labels=num_labels, **options))
    with torch.no_grad():  # visible logits, whatever the initialization
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def save_tiny(family: str, folder: Path, num_labels: int = 10, **options) -> Path:
    tiny(family, num_labels, **options).save_pretrained(folder)
    return folder
