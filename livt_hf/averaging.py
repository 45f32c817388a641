"""An exponential moving average (EMA) of a model's weights, as timm's `ModelEma` keeps it.

After each optimiser step, s <- d s + (1 - d) w for every floating-point tensor of the state dict, from s = the weights
at the start, without a warm-up of the decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

EMA_FILE = "ema.safetensors"  # in a checkpoint, beside the weights that are trained


class WeightAverage:
    """The average of ``model``'s weights; every process keeps its own, all of them equal."""

    def __init__(self, model: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: {decay} is out of range; it must be at least 0 and below 1")
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, tensor in model.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(tensor.to(average), 1.0 - self.decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average; afterwards its own weights again, bit by bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def save(self, folder: Path) -> None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.weights.items()}
        save_file(weights, folder / EMA_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """The average of a checkpoint; the model's weights where the run has been without one so far."""
        file = folder / EMA_FILE
        saved = load_file(file) if file.is_file() else model.state_dict()
        for name, average in self.weights.items():
            average.copy_(saved[name])
