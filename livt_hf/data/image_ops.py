"""The operations of RandAugment on many images at once, each image with its own level.

All but the geometric ones equal Pillow's and timm's bit for bit, including their rounding. Shear and translation shift
whole rows or columns, so that bicubic interpolation needs 4 neighbors, not 16; a few pixels in a thousand differ from
Pillow's by one level, from rounding.

Every operation maps images, uint8 (N, H, W, 3), levels (N,) (what timm's function of that name takes; ignored where it
takes none) and the fill color, (3,), to new images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch
from numpy.lib.stride_tricks import sliding_window_view

Operation = Callable[[np.ndarray, np.ndarray, Sequence[int]], np.ndarray]


def invert(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return ~images


def posterize(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Keep the ``levels`` highest bits."""
    masks = (0xFF00 >> np.minimum(levels, 8)).astype(np.uint8)  # of its low byte
    return images & _per_image(masks)


def solarize(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Invert pixels of at least ``levels`` (0 to 256)."""
    return images ^ _ones_where(images >= _per_image(levels.astype(np.int16)))


def solarize_add(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Add ``levels`` (0 to 128) to pixels below 128."""
    return images + (_ones_where(images < 128) & _per_image(levels.astype(np.uint8)))


def auto_contrast(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Stretch each channel linearly to 0 to 255."""
    low, high = (
        extreme(extreme(_joined_rows(images), 1).reshape(len(images), -1, 3), 1).reshape(-1, 1).astype(np.int64)
        for extreme in (np.min, np.max)
    )  # (3N, 1)
    scale = 255.0 / np.maximum(high - low, 1)
    tables = (np.arange(256) * scale - low * scale).clip(0, 255)  # (3N, 256)
    return _look_up(np.where(high > low, tables, np.arange(256)), _channel_index(images), images)


def equalize(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Make the histogram of each channel uniform."""
    index = _channel_index(images)
    counts = np.bincount(index.ravel(), minlength=3 * 256 * len(images)).reshape(-1, 256)  # (3N, 256)
    last = 255 - (counts[:, ::-1] > 0).argmax(1)  # (3N,) the highest value
    steps = (counts.sum(1) - counts[np.arange(len(counts)), last])[:, None] // 255  # 0 also for a single value
    below = counts.cumsum(1) - counts
    tables = ((steps // 2 + below) // np.maximum(steps, 1)).clip(0, 255)
    return _look_up(np.where(steps > 0, tables, np.arange(256)), index, images)


def brightness(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return _blend(np.zeros(1, np.uint8), images, levels)


def contrast(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Away from the mean gray level of the image."""
    means = np.asarray(_gray(images)).reshape(len(images), -1).mean(1)  # float64, exact sums
    return _blend(_per_image((means + 0.5).astype(np.uint8)), images, levels)


def color(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Away from the gray image."""
    return _blend(np.asarray(_gray(images).convert("RGB")).reshape(images.shape), images, levels)


def desaturate(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return color(images, (1.0 - levels).clip(0, 1), fill)


def sharpness(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Away from the smoothed image: weights 5 at the center and 1 around it, over 13; the border is kept."""
    rows = _joined_rows(images).astype(np.uint16)  # (N, H, 3W)
    vertical = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total = vertical[..., :-6] + vertical[..., 3:-3] + vertical[..., 6:] + 4 * rows[:, 1:-1, 3:-3]
    smooth = _joined_rows(images).copy()
    smooth[:, 1:-1, 3:-3] = (total + 6) // 13  # rounded
    return _blend(smooth.reshape(images.shape), images, levels)


def shear_x(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return shift_rows(images, levels[:, None] * (np.arange(images.shape[1]) + 0.5), fill)


def translate_x(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return shift_rows(images, np.repeat((levels * images.shape[2])[:, None], images.shape[1], axis=1), fill)


def shear_y(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return _transposed(shear_x(_transposed(images), levels, fill))


def translate_y(images: np.ndarray, levels: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    return _transposed(translate_x(_transposed(images), levels, fill))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Solarize": solarize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "ColorIncreasing": color,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Brightness": brightness,
    "BrightnessIncreasing": brightness,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
    "Desaturate": desaturate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
}


def shift_rows(images: np.ndarray, shifts: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Shift each row: output column x is input column x + shift, or ``fill`` outside the image.

    Follows Pillow: bicubic kernel with a = -1, edge pixels repeated, values truncated to integers.

    Args:
        images: uint8 (N, H, W, 3).
        shifts: (N, H), in pixels.
    """
    count, height, width, _ = images.shape
    shifts = shifts.reshape(-1)  # (R,), R = N * H
    whole = np.floor(shifts)
    d = (shifts - whole).astype(np.float32)[:, None]
    taps = (d * (d * (2 - d) - 1), 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1))  # 4 x (R, 1)

    # Pixels under all four taps: columns whole - 1 to whole + W + 1 of each row, whose edge pixels are repeated twice.
    # Further outside, a window holds pixels of the rows beside it, whose results are overwritten by the fill color.
    padded = np.empty((count * height + 2, width + 4, 3), dtype=np.uint8)
    rows = images.reshape(-1, width, 3)
    padded[1:-1, 2:-2], padded[1:-1, :2], padded[1:-1, -2:] = rows, rows[:, :1], rows[:, -1:]
    first = whole.clip(-width - 2, width + 1).astype(np.int64) + 1 + np.arange(1, len(padded) - 1) * (width + 4)
    windows = sliding_window_view(padded.reshape(-1), 3 * (width + 3))[3 * first]  # (R, 3 (W + 3))

    pixels = torch.from_numpy(windows).float()
    moved = torch.full((len(shifts), 3 * width), 1e-3)  # so that sums just below an integer do not lose a level
    for tap, weights in enumerate(taps):
        moved.addcmul_(pixels[:, 3 * tap : 3 * (tap + width)], torch.from_numpy(weights))
    result = _truncated(moved)  # (R, 3W)

    column = np.repeat(np.arange(width, dtype=np.int16), 3)  # (3W,); inside: 0 <= column + 0.5 + shift < W
    start, stop = (np.ceil(edge - 0.5 - shifts).clip(0, width).astype(np.int16)[:, None] for edge in (0, width))
    inside = _ones_where((column >= start) & (column < stop))
    result = result & inside | np.tile(np.array(fill, dtype=np.uint8), width) & ~inside
    return result.reshape(images.shape)


def _blend(first: np.ndarray, second: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Pillow's ``Image.blend``: first + factor * (second - first) in float32, clipped and truncated."""
    start = first.astype(np.float32)
    blended = second.astype(np.float32)
    blended -= start
    blended *= _per_image(factors.astype(np.float32))
    blended += start
    return _truncated(torch.from_numpy(blended))


def _truncated(values: torch.Tensor) -> np.ndarray:
    """float32 -> uint8, clipped; torch clips faster than numpy, numpy truncates faster than torch."""
    return values.clamp_(0, 255).numpy().astype(np.uint8)


def _gray(images: np.ndarray) -> PIL.Image.Image:
    """All images below each other in mode "L"."""
    return PIL.Image.fromarray(images.reshape(-1, *images.shape[2:])).convert("L")  # (N * H, W)


def _channel_index(images: np.ndarray) -> np.ndarray:
    """(N, H, 3W): value + 256 * (3 * image + channel), the position of each value in N * 3 tables."""
    count, _, width, _ = images.shape
    tables = np.arange(3 * count).reshape(count, 1, 3)
    return _joined_rows(images) + 256 * np.tile(tables, (1, 1, width))


def _look_up(tables: np.ndarray, index: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The image whose values are replaced by those of the tables, (3N, 256), truncated to integers."""
    return tables.astype(np.uint8).ravel().take(index).reshape(images.shape)


def _joined_rows(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) -> (N, H, 3W): numpy is slow if the last axis has 3 elements."""
    return images.reshape(*images.shape[:2], -1)


def _transposed(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) -> (N, W, H, 3), a copy of whole pixels."""
    pixels = np.ascontiguousarray(images).view("V3").swapaxes(1, 2)  # (N, W, H, 1)
    return np.ascontiguousarray(pixels).view(np.uint8)


def _per_image(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N, 1, 1, 1)."""
    return values[:, None, None, None]


def _ones_where(condition: np.ndarray) -> np.ndarray:
    """uint8, all bits set where the condition holds: masking by bits is many times faster than np.where."""
    return np.negative(condition.view(np.int8)).view(np.uint8)
