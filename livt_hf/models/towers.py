"""Vision towers: backbones without a classifier, as the native classifiers of transformers.

- A model with a ``vision_config`` (CLIP, SigLIP, MetaCLIP 2) has the sizes of its tower there (`vision_config`).
- A checkpoint of the tower alone (`CLIPVisionModel`) has no classifier class of its own; it is that of the whole model.
- SigLIP 2 in its NaFlex format takes sequences of patches. Images of one square size make it a SigLIP, exactly.
  (The checkpoints of SigLIP 2 with a fixed resolution are of the type "siglip" anyway.)

The native classes pool the mean of the patch tokens, for CLIP without the last LayerNorm
(`modeling_clip.CLIPForImageClassification`, `modeling_siglip.SiglipForImageClassification`).

Legend: B batch, D width, P patch size, T patch tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPVisionModel,
    MetaClip2Config,
    MetaClip2VisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionModel,
)

from .loading import load_model

# Towers that are saved alone -> their class, and the config of the whole model, which has a classifier class
_TOWERS: dict[str, tuple[Any, Any]] = {
    "clip_vision_model": (CLIPVisionModel, CLIPConfig),
    "metaclip_2_vision_model": (MetaClip2VisionModel, MetaClip2Config),
    "siglip_vision_model": (SiglipVisionModel, SiglipConfig),
    "siglip2_vision_model": (Siglip2VisionModel, Siglip2Config),
}
# Backbones that transformers has no classifier class for -> the same weights in timm's format, whose wrapper has one
_IN_TIMM = {
    "dinov3_vit": "timm/vit_base_patch16_dinov3.lvd1689m",
    "dinov3_convnext": "timm/convnext_base.dinov3_lvd1689m",
}
# Statistics that a family was trained with, where a checkpoint has no image processor:
# `transformers.image_utils.OPENAI_CLIP_MEAN` and `_STD`, and those of `SiglipImageProcessor`
_CLIP_STATISTICS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_FAMILY_STATISTICS = {
    "clip": _CLIP_STATISTICS,
    "metaclip_2": _CLIP_STATISTICS,
    "siglip": ([0.5] * 3, [0.5] * 3),
    "siglip2": ([0.5] * 3, [0.5] * 3),
}


def vision_config(config: PreTrainedConfig) -> Any:
    """The part of a config that has the sizes of the vision tower; the config itself where there is only one."""
    return getattr(config, "vision_config", None) or config


def classifier_config(pretrained: str, config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the native classifier on a backbone: that of the whole model for a tower which was saved alone.

    Raises:
        ValueError: transformers has no classifier of this kind; the message names timm's where it has one.
    """
    if config.model_type in _IN_TIMM:
        raise ValueError(
            f"pretrained: {pretrained!r} is a {config.model_type!r} model, for which transformers has no image "
            f"classifier; give the same weights in timm's format, for instance {_IN_TIMM[config.model_type]}"
        )
    if config.model_type not in _TOWERS:
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(
                f"pretrained: {pretrained!r} cannot be loaded as an image classifier: it is a {config.model_type!r} "
                "model; give an image classifier, or a backbone such as CLIP, SigLIP, DINOv2, ViT or one of timm's"
            )
        return config
    return _TOWERS[config.model_type][1](vision_config=config.to_dict())


def load_tower(pretrained: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The native classifier on a tower that was saved alone; its classifier is newly initialized.

    Args:
        config: of `classifier_config`.

    Raises:
        ValueError: as in `load_model`.
    """
    tower_class, _ = _TOWERS[vision_config(config).model_type]
    tower, _ = load_model(tower_class, pretrained, "pretrained", quiet=True, dtype=torch.float32)
    model: Any = AutoModelForImageClassification.from_config(config)
    weights = tower.state_dict()
    if not weights.keys() & model.vision_model.state_dict().keys():  # older releases of transformers nest the tower
        weights = {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    model.vision_model.load_state_dict(weights)
    return model


def family_statistics(config: PreTrainedConfig) -> tuple[list[float], list[float]] | None:
    """Pixel statistics that all models of a family share, or None where they do not."""
    return _FAMILY_STATISTICS.get(config.model_type.removesuffix("_vision_model"))


# SigLIP 2, NaFlex


def fixed_resolution(model: Any) -> Any:
    """A SigLIP 2 in NaFlex format as a SigLIP: the same function of images with as many patches as it has positions.

    The patches become a convolution. NaFlex resizes its square of positions to that of an image; where both are of one
    size, nothing changes.

    Args:
        model: a `Siglip2ForImageClassification` or `Siglip2Model`; any other model is returned as it is.
    """
    if model.config.model_type != "siglip2":
        return model
    tower = model.config.vision_config
    side = math.isqrt(tower.num_patches)
    sizes = {**tower.to_dict(), "image_size": side * tower.patch_size, "model_type": "siglip_vision_model"}
    config = SiglipConfig(
        **_common_fields(model.config),
        vision_config=sizes,
        text_config={**model.config.text_config.to_dict(), "model_type": "siglip_text_model"},
    )
    fixed = (SiglipForImageClassification if hasattr(model, "classifier") else SiglipModel)(config)
    weights = model.state_dict()
    for name, tensor in weights.items():
        if name.endswith("vision_model.embeddings.patch_embedding.weight"):  # (D, P * P * 3), channels last
            patches = tensor.unflatten(1, (tower.patch_size, tower.patch_size, tower.num_channels))
            weights[name] = patches.permute(0, 3, 1, 2).contiguous()  # (D, 3, P, P)
    fixed.load_state_dict(weights)
    return fixed


def _common_fields(config: PreTrainedConfig) -> dict[str, Any]:
    own = ("model_type", "architectures", "vision_config", "text_config", "dtype", "torch_dtype")
    return {name: value for name, value in config.to_dict().items() if name not in own}


# Parameters without a gradient


def freeze_unused(model: PreTrainedModel, image_size: int) -> list[str]:
    """Freeze the parameters that the logits do not depend on, and return their names: DDP expects a gradient of all.

    They are mask tokens, CLIP's last LayerNorm and SigLIP's attention pooling, for instance. A forward pass of one
    image finds them.
    """
    training = model.training
    pixel_values = torch.zeros(1, 3, image_size, image_size, dtype=model.dtype, device=model.device)
    with torch.enable_grad():
        logits = model.eval()(pixel_values).logits  # without drop path, which would draw random numbers
    model.train(training)
    used = _leaves(logits)
    unused = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in used]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    return unused


def _leaves(output: Tensor) -> set[nn.Parameter]:
    """The leaves of a tensor's autograd graph; `nn.Parameter` is hashed by identity."""
    found, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [child for child, _ in node.next_functions]
    return found
