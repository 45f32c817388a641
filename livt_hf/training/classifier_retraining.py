"""Retraining only the classifier, on class-balanced batches: cRT and LWS (Kang et al., ICLR 2020).

crt   the classifier is drawn anew and trained, the backbone frozen
lws   one scale f_i per class is learned, z_i -> f_i z_i, from 1; weights and biases stay. The paper
      (Sec. 4.3) writes w_i -> f_i w_i; to scale the bias as well is our choice. The scales are folded into weight and
      bias at the end, so that the saved model is a native one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.loading import classifier_layers
from ..models.modeling_livt import CLASSIFIER_STD

SCALES_FILE = "classifier_scales.safetensors"  # in a checkpoint: a native model has no place for them


class ScaledLinear(nn.Linear):
    """A frozen linear layer whose outputs (..., C) are multiplied by ``scales`` (C,)."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(layer.out_features))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scales

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        layer.weight.copy_(self.weight * self.scales[:, None])
        if self.bias is not None:
            layer.bias.copy_(self.bias * self.scales)
        return layer.to(self.weight.device)


def train_classifier_only(model: PreTrainedModel, method: str) -> None:
    """Freeze all but what ``method`` ("crt" or "lws") trains."""
    layers = classifier_layers(model)
    model.requires_grad_(False)
    for name, layer in layers.items():
        if method == "lws":
            _replace(model, name, ScaledLinear(layer))
            continue
        layer.requires_grad_(True)
        nn.init.trunc_normal_(layer.weight, std=CLASSIFIER_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def fold_scales(model: PreTrainedModel) -> None:
    """Native layers in the place of the scaled ones, with the same outputs."""
    for name, layer in scaled_layers(model).items():
        _replace(model, name, layer.folded())


def scaled_layers(model: nn.Module) -> dict[str, ScaledLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaledLinear)}


def save_scales(model: nn.Module, folder: Path) -> None:
    scales = {name: layer.scales.detach().cpu() for name, layer in scaled_layers(model).items()}
    if scales:
        save_file(scales, folder / SCALES_FILE)


@torch.no_grad()
def load_scales(model: nn.Module, folder: Path) -> None:
    layers = scaled_layers(model)
    saved = load_file(folder / SCALES_FILE) if layers else {}
    for name, layer in layers.items():
        layer.scales.copy_(saved[name])


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, field = name.rpartition(".")
    setattr(model.get_submodule(owner), field, layer)
