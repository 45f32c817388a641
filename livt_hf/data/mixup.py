"""Batch-wise mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), with timm's formulas.

One lambda and one box per optimizer step, drawn from (seed, step) alone. Samples 2j and 2j + 1 are mixed with each
other, so that the result does not depend on how the global batch is split into (even) micro-batches and processes.

Legend: B batch, H x W image, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

MIXUP_STREAM = 3  # separates these draws from others with the same seed


class Mixup:
    """Mix pairs of neighboring samples and return soft targets with label smoothing.

    Args:
        mixup_alpha, cutmix_alpha: lambda ~ Beta(alpha, alpha); 0 disables mixup or CutMix.
        prob: probability of mixing a batch at all.
        switch_prob: probability of CutMix over mixup if both are enabled.

    Raises:
        ValueError: a negative alpha, or a probability or smoothing outside 0 to 1.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        seed: int = 0,
    ):
        for option, value in {"mixup": mixup_alpha, "cutmix": cutmix_alpha}.items():
            if value < 0:
                raise ValueError(f"{option}_alpha: {value} must not be negative (0 disables {option})")
        for option, value in {"prob": prob, "switch_prob": switch_prob, "label_smoothing": label_smoothing}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{option}: {value} must be between 0 and 1")
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.prob = prob
        self.switch_prob = switch_prob
        self.label_smoothing = label_smoothing
        self.seed = seed

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed pixels (B, 3, H, W) and float32 targets (B, C).

        Args:
            pixels: (B, 3, H, W) float, B even.
            labels: (B,) int64.
            step: optimizer step of the batch.
        """
        if len(pixels) % 2:
            raise ValueError(f"batch_size: {len(pixels)} is odd, but mixup mixes pairs of images; use an even one")
        return self.apply(pixels, labels, self.draw_tensor(step, pixels.shape[-2:], pixels.device))

    def draw(self, step: int, height: int, width: int) -> tuple[float, tuple[int, int, int, int] | None]:
        """Lambda, and for CutMix the box (top, bottom, left, right); lambda is then the fraction of area outside it."""
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, step, MIXUP_STREAM])))
        if not (self.mixup_alpha or self.cutmix_alpha) or random.random() >= self.prob:
            return 1.0, None
        cutmix = not self.mixup_alpha or (self.cutmix_alpha > 0 and random.random() < self.switch_prob)
        alpha = self.cutmix_alpha if cutmix else self.mixup_alpha
        mix_ratio = float(random.beta(alpha, alpha))
        if not cutmix:
            return mix_ratio, None
        cut_height, cut_width = (int(side * math.sqrt(1 - mix_ratio)) for side in (height, width))
        y, x = int(random.integers(height)), int(random.integers(width))
        top, bottom = max(y - cut_height // 2, 0), min(y + (cut_height + 1) // 2, height)
        left, right = max(x - cut_width // 2, 0), min(x + (cut_width + 1) // 2, width)
        return 1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)

    def draw_tensor(self, step: int, size: Sequence[int], device: torch.device) -> torch.Tensor:
        """The `draw` of a step for images of ``size`` (H, W), as float32 (8,).

        The shares of a sample and of its neighbor in the target, the same two in the pixels outside the box, and the
        box, in which all pixels are the neighbor's; without CutMix it is empty.
        """
        height, width = size
        mix_ratio, box = self.draw(step, height, width)
        outside = mix_ratio if box is None else 1.0
        drawn = (mix_ratio, 1 - mix_ratio, outside, 1 - outside, *(box or (0, 0, 0, 0)))
        # A copy from unpinned memory would wait for the device.
        return torch.tensor(drawn, pin_memory=device.type == "cuda").to(device, non_blocking=True)

    def apply(
        self, pixels: torch.Tensor, labels: torch.Tensor, drawn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch as ``drawn`` by `draw_tensor`, on whose values neither shapes nor branches depend."""
        own, other, outside, other_outside, top, bottom, left, right = drawn
        row, column = (torch.arange(size, device=pixels.device) for size in pixels.shape[-2:])
        inside = ((row >= top) & (row < bottom))[:, None] & (column >= left) & (column < right)  # (H, W)
        kept, swapped = torch.where(inside, 0, outside), torch.where(inside, 1, other_outside)
        targets = self.smoothed(labels)
        return (
            pixels * kept + swap_neighbors(pixels) * swapped,
            targets * own + swap_neighbors(targets) * other,
        )

    def smoothed(self, labels: torch.Tensor) -> torch.Tensor:
        """One-hot rows (B, C) with label smoothing s: 1 - s + s / C for the true class, s / C for the others."""
        off_value = self.label_smoothing / self.num_classes
        targets = torch.full((len(labels), self.num_classes), off_value, device=labels.device)
        return targets.scatter_(1, labels.long()[:, None], 1.0 - self.label_smoothing + off_value)


def swap_neighbors(batch: torch.Tensor) -> torch.Tensor:
    """Exchange samples 2j and 2j + 1 of a batch (B, ...)."""
    return batch.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # (B, ...) -> (B/2, 2, ...) -> (B, ...)
