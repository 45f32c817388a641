"""Retraining only the classifier on class-balanced batches (Kang et al., ICLR 2020); the backbone is frozen.

crt   classifier retraining (cRT): the classifier is reinitialized and trained
lws   learnable weight scaling (LWS): one scale f_i per class is learned, z_i -> f_i z_i, starting at 1; weights and
      biases are frozen. The paper (Sec. 4.3) has w_i -> f_i w_i; scaling the bias as well is our choice. The scales are
      finally folded into weight and bias, so that the saved model is native.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.loading import classifier_layers
from ..models.modeling_livt import CLASSIFIER_STD

SCALES_FILE = "classifier_scales.safetensors"  # in a checkpoint, since the native model has no such tensors


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
        """A plain linear layer with the same outputs."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        layer.weight.copy_(self.weight * self.scales[:, None])
        if self.bias is not None:
            layer.bias.copy_(self.bias * self.scales)
        return layer.to(self.weight.device)


def train_classifier_only(model: PreTrainedModel, method: str) -> None:
    """Freeze everything but the parameters that ``method`` ("crt" or "lws") trains."""
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
    """Replace scaled layers by plain linear layers with the same outputs."""
    for name, layer in scaled_layers(model).items():
        _replace(model, name, layer.folded())


def scaled_layers(model: nn.Module) -> dict[str, ScaledLinear]:
    """Scaled layers by module name; empty except for LWS."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaledLinear)}


def save_scales(model: nn.Module, folder: Path) -> None:
    """Write the scales of LWS, if any, into a checkpoint."""
    scales = {name: layer.scales.detach().cpu() for name, layer in scaled_layers(model).items()}
    if scales:
        save_file(scales, folder / SCALES_FILE)


@torch.no_grad()
def load_scales(model: nn.Module, folder: Path) -> None:
    """Restore the scales of LWS, if any, from a checkpoint."""
    layers = scaled_layers(model)
    saved = load_file(folder / SCALES_FILE) if layers else {}
    for name, layer in layers.items():
        layer.scales.copy_(saved[name])


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, field = name.rpartition(".")
    setattr(model.get_submodule(owner), field, layer)
