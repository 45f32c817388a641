"""Random crops resized to a square, and flipped: of one image, or of the crops of many decoded images at once.

Legend: B batch, S image size, H x W size of the decoded image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view


class Crop(NamedTuple):
    """A box in pixels, and whether the crop is flipped horizontally."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def random_crop(height: int, width: int, min_scale: float, flip_probability: float) -> Crop:
    """Draw from `random` the box of `random_crop_box` and then the flip."""
    return Crop(*random_crop_box(height, width, min_scale), random.random() < flip_probability)


def random_crop_box(height: int, width: int, min_scale: float) -> tuple[int, int, int, int]:
    """Top, left, height, width as in torchvision's RandomResizedCrop: scale (min_scale, 1), ratio (3/4, 4/3)."""
    for _ in range(10):
        area = height * width * random.uniform(min_scale, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return (
                random.randint(0, height - crop_height),
                random.randint(0, width - crop_width),
                crop_height,
                crop_width,
            )
    # The image is too narrow: take the largest center crop with an allowed aspect ratio.
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    crop_width, crop_height = max(crop_width, 1), max(crop_height, 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop_one(image: torch.Tensor, crop: Crop, size: int) -> torch.Tensor:
    """The crop of one image, uint8 (3, H, W) -> (3, S, S): bicubic."""
    top, left, height, width, flip = crop
    resized = resize(image[:, top : top + height, left : left + width], size, size)
    return resized.flip(-1) if flip else resized


def crop_many(images: np.ndarray, numbers: np.ndarray, crops: Sequence[Crop], size: int) -> torch.Tensor:
    """`crop_one` for many images of one size, several times faster: one call per width and per height of the crops.

    Resizing works in two passes, each rounded to uint8: every row to width S, then every column to height S. So the
    rows of all crops of one width are resized together, and then all crops of one height.

    Args:
        images: uint8 (N, H, W, 3).
        numbers: (B,) int64, the image of each crop.

    Returns:
        uint8 (B, S, S, 3).
    """
    _, height, width, _ = images.shape
    tops, lefts, heights, widths, flips = np.array(crops).T  # (B,) each
    first = np.cumsum(heights) - heights  # (B,) position of each crop's first row among the R rows of all crops
    owner = np.repeat(np.arange(len(crops)), heights)  # (R,)
    row = np.arange(len(owner)) + (tops - first)[owner]
    start = 3 * ((numbers[owner] * height + row) * width + lefts[owner])  # (R,) where the row of the crop starts

    rows = torch.empty(len(owner), size, 3, dtype=torch.uint8)
    values = images.reshape(-1)
    for number in np.unique(widths):
        members = np.flatnonzero(widths[owner] == number)
        source = sliding_window_view(values, 3 * number)[start[members]].reshape(1, len(members), number, 3)
        rows[torch.from_numpy(members)] = _resize_many(source, len(members), size)[0]

    result = torch.empty(len(crops), size, size, 3, dtype=torch.uint8)
    for number in np.unique(heights):
        members = np.flatnonzero(heights == number)
        source = rows.numpy()[first[members, None] + np.arange(number)]  # (n, height, S, 3)
        result[torch.from_numpy(members)] = _resize_many(source, size, size)
    flipped = torch.from_numpy(np.flatnonzero(flips))
    result[flipped] = result[flipped].flip(2)
    return result


def _resize_many(images: np.ndarray, height: int, width: int) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> (n, height, width, 3)."""
    channels_last = torch.from_numpy(images).permute(0, 3, 1, 2)
    return _interpolate(channels_last, height, width).permute(0, 2, 3, 1)


def resize_shorter_side(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (3, H, W) so that the shorter side is ``size``, keeping the aspect ratio."""
    height, width = image.shape[-2:]
    longer = int(size * max(height, width) / min(height, width))
    return resize(image, size, longer) if height <= width else resize(image, longer, size)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 (3, H, W) -> (3, height, width), channels last in memory, as images are decoded."""
    return _interpolate(image.permute(1, 2, 0)[None].permute(0, 3, 1, 2), height, width)[0]


def _interpolate(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic with antialiasing, uint8 (n, 3, h, w) -> (n, 3, height, width)."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
