"""What is done to a training batch on the model's device: normalization, random erasing, mixup.

All of it can be compiled into one program, which then fits every batch: no shape and no branch depends on the values of
a tensor, and what changes at every step is a tensor.

Legend: B batch, H x W image, C classes, M erased pixels of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .mixup import Mixup


def normalize(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, minus mean and divided by std (per channel, of pixels in 0..1), same device."""
    return standardize(pixel_values, *statistics(tuple(mean), tuple(std), pixel_values.device))


def standardize(pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`normalize` with `statistics`."""
    return pixel_values.contiguous().to(torch.float32).sub_(mean).div_(std)


@functools.lru_cache(maxsize=16)  # copied to a device once: a copy from unpinned memory waits for the device
def statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels in 0..255, (3, 1, 1) each."""
    scaled_mean, scaled_std = (torch.tensor(values).mul(255).view(3, 1, 1).to(device) for values in (mean, std))
    return scaled_mean, scaled_std


def augment(
    batch: dict[str, Any], mean: Tensor, std: Tensor, mixup: Mixup | None = None, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalize, erase and mix a batch of `FinetuneTransform`.

    Args:
        batch: collated, on the device of the model.
        mean, std: `statistics`.
        drawn: `Mixup.draw_tensor` of the step, if there is a ``mixup``.

    Returns:
        Pixels float32 (B, 3, H, W), and the labels, int64 (B,) or from ``mixup`` float32 (B, C).
    """
    pixels = standardize(batch["pixel_values"], mean, std)
    pixels = erase(pixels, batch["erase_box"], batch["erase_seed"], batch["num_erased"])
    if mixup is None or drawn is None:
        return pixels, batch["labels"]
    return mixup.apply(pixels, batch["labels"], drawn)


def erase(pixels: Tensor, erase_box: Tensor, erase_seed: Tensor, num_pixels: int | None = None) -> Tensor:
    """Fill the box of each image with noise ~ N(0, 1), in place unless compiled; a box of height 0 erases nothing.

    Pixel k of a box (row by row, channels last) gets `normal_noise` number k of the sample's seed: the noise depends
    neither on the batch nor, up to rounding, on the device.

    Args:
        pixels: (B, 3, H, W), normalized.
        erase_box: int64 (B, 4) as top, left, height, width.
        erase_seed: int64 (B,).
        num_pixels: sum of the boxes' areas (`erased_pixels`), so that a GPU need not be waited for.
    """
    if torch.compiler.is_compiling():
        return _erase_with_fixed_shapes(pixels, erase_box, erase_seed)
    top, left, height, width = erase_box.unbind(dim=1)
    area = height * width
    total = int(area.sum()) if num_pixels is None else num_pixels
    ends = area.cumsum(0)
    flat = torch.arange(total, device=pixels.device)  # (M,), the pixels of all boxes
    sample = torch.searchsorted(ends, flat, right=True)  # (M,), the image of each
    number = flat - (ends - area)[sample]  # (M,), within its box
    row = top[sample] + number // width[sample]
    column = left[sample] + number % width[sample]
    channels = pixels.shape[1]
    counter = number[:, None] * channels + torch.arange(channels, device=pixels.device)  # (M, 3)
    pixels[sample, :, row, column] = normal_noise(erase_seed[sample, None], counter).to(pixels.dtype)
    return pixels


def _erase_with_fixed_shapes(pixels: Tensor, erase_box: Tensor, erase_seed: Tensor) -> Tensor:
    """`erase` with noise for all pixels, most of which is dropped: slow unless a compiler makes it one kernel."""
    top, left, height, width = (numbers.view(-1, 1, 1, 1) for numbers in erase_box.unbind(dim=1))
    channel, row, column = (torch.arange(size, device=pixels.device) for size in pixels.shape[1:])
    row, column = row[:, None] - top, column - left  # (B, 1, H, 1) and (B, 1, 1, W), within the box
    counter = (row * width + column) * len(channel) + channel[:, None, None]  # (B, 3, H, W)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)  # (B, 1, H, W)
    noise = normal_noise(erase_seed.view(-1, 1, 1, 1), counter)
    return torch.where(inside, noise.to(pixels.dtype), pixels)


def erased_pixels(erase_box: Tensor) -> int:
    """Number of pixels in boxes (B, 4) as top, left, height, width."""
    return int((erase_box[:, 2] * erase_box[:, 3]).sum())


def normal_noise(seed: Tensor, counter: Tensor) -> Tensor:
    """Number ``counter`` of the stream ``seed`` of a counter-based generator, float32 ~ N(0, 1), elementwise.

    The output function of splitmix64 (Steele et al., 2014), then a Box-Muller transform of two 24-bit fractions.

    Args:
        seed, counter: int64, of shapes that broadcast.
    """
    bits = seed + (counter + 1) * _signed(0x9E3779B97F4A7C15)  # int64 wraps around
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shifted(bits, 31)
    first, second = ((_shifted(bits, shift) & 0xFFFFFF).float() for shift in (40, 16))
    radius = torch.sqrt(-2 * torch.log((first + 1) * 2**-24))
    return radius * torch.cos(second * (2 * math.pi * 2**-24))


def _signed(number: int) -> int:
    """An unsigned 64-bit number as the signed one of the same bits."""
    return number - 2**64


def _shifted(bits: Tensor, places: int) -> Tensor:
    """int64, shifted to the right with zeros from the left."""
    return (bits >> places) & (2 ** (64 - places) - 1)
