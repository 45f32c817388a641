"""Features of an image: the vector that a classifier's linear layer takes, of any architecture.

Legend: B batch, C classes, D width, K linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .loading import classifier_layers


def pooled_features(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """Features (B, D) of normalized images (B, 3, H, W), in the dtype that the model computes them in.

    Of a classifier, the input of its linear layer, whatever pools and normalizes the tokens before it; where K layers
    share the classification (`classifier_layers`: DeiT with distillation), their inputs side by side, (B, K * D), so
    that `set_classifier` can express the mean of their outputs. Of a masked autoencoder, its `features`. Of a model
    without a classifier, its pooled output.

    Raises:
        ValueError: the model has neither a linear classifier nor a pooled output.
    """
    if model.config.model_type == "vit_mae":
        autoencoder: Any = model
        return autoencoder.features(pixel_values)
    layers = linear_layers(model)
    if not layers:
        pooled = getattr(model(pixel_values), "pooler_output", None)
        if pooled is None:
            raise ValueError(f"model: {type(model).__name__} has neither a linear classifier nor a pooled output")
        return pooled.flatten(1)
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args: inputs.__setitem__(name, args[0])

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        model(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([inputs[name] for name in layers], dim=-1)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """As `classifier_layers`, but empty for a model without one."""
    try:
        return classifier_layers(model)
    except ValueError:
        return {}


def encoder_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that `pooled_features` depends on: not those of the classifier and of an autoencoder's decoder."""
    other = tuple(f"{name}." for name in ("decoder", *linear_layers(model)))
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(other)}


@torch.no_grad()
def set_classifier(model: PreTrainedModel, layer: nn.Linear) -> None:
    """Give a classifier the logits of ``layer`` on its `pooled_features` (K * D -> C).

    Of K layers, whose outputs are averaged, each gets its part of the weight times K, and the whole bias.

    Raises:
        ValueError: the classifier has no bias to take that of ``layer``.
    """
    layers = classifier_layers(model)
    parts = layer.weight.split([each.in_features for each in layers.values()], dim=1)
    for (name, each), part in zip(layers.items(), parts, strict=True):
        each.weight.copy_(part * len(layers))
        if each.bias is not None:
            each.bias.copy_(layer.bias)
        elif layer.bias.any():
            raise ValueError(f"model: its linear classifier {name!r} has no bias; choose another --pretrained")
