"""timm's RandAugment, made to work with any Pillow, and faster.

- Posterize keeps at least one bit. timm asks for 0 bits in about 1 of 1,000 draws, which Pillow 13 refuses.
- Shear and translation move whole rows or columns, so that Pillow's bicubic interpolation needs 4 instead of 16
  neighbors: a quarter of the time, the same result but for a rounding of one level at a few pixels in a thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from timm.data.auto_augment import RandAugment, rand_augment_transform


def build_rand_augment(description: str, image_size: int, mean: Sequence[float]) -> RandAugment:
    """The RandAugment that timm's own training transform makes of the description, bicubic, on PIL images.

    Args:
        mean: the color (0 to 1) that appears where the image is moved away.
    """
    options = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": PIL.Image.Resampling.BICUBIC,
    }
    try:
        augment = rand_augment_transform(description, options)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"rand_augment={description!r} is not a description like 'rand-m9-mstd0.5-inc1'") from error
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = functools.partial(_at_least_one, op.level_fn)
        op.aug_fn = MOVES.get(op.name, op.aug_fn)
    return augment


def _at_least_one(level_fn, level: float, options: dict) -> tuple[int]:
    return (max(1, level_fn(level, options)[0]),)


def shear_x(image: PIL.Image.Image, amount: float, fillcolor, **_) -> PIL.Image.Image:
    return move_rows(image, amount * (np.arange(image.height) + 0.5), fillcolor)


def translate_x(image: PIL.Image.Image, amount: float, fillcolor, **_) -> PIL.Image.Image:
    return move_rows(image, np.full(image.height, amount * image.width), fillcolor)


def shear_y(image: PIL.Image.Image, amount: float, fillcolor, **_) -> PIL.Image.Image:
    return _swap_axes(shear_x(_swap_axes(image), amount, fillcolor))


def translate_y(image: PIL.Image.Image, amount: float, fillcolor, **_) -> PIL.Image.Image:
    return _swap_axes(translate_x(_swap_axes(image), amount, fillcolor))


def _swap_axes(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.transpose(PIL.Image.Transpose.TRANSPOSE)


MOVES = {"ShearX": shear_x, "ShearY": shear_y, "TranslateXRel": translate_x, "TranslateYRel": translate_y}


def move_rows(image: PIL.Image.Image, shifts: np.ndarray, fillcolor: tuple[int, int, int]) -> PIL.Image.Image:
    """Move every row by its own shift: output column x shows input column x + shift, ``fillcolor`` where there is none.

    Pillow's bicubic kernel (a = -1) and its conventions: edge pixels repeat, and fractions are cut off.

    Args:
        image: RGB, H x W.
        shifts: (H,), in pixels.
    """
    height, width = image.height, image.width
    whole = np.floor(shifts).astype(np.int64)
    d = torch.from_numpy(shifts - whole).float().view(height, 1, 1)
    taps = (d * (d * (2 - d) - 1), 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1))  # 4 x (H, 1, 1)

    # The pixels under all four taps: columns whole - 1 to whole + W + 1 of each row, as packed 4-byte numbers.
    columns = (np.arange(-1, width + 2) + whole[:, None]).clip(0, width - 1)  # (H, W + 3)
    packed = np.asarray(image.convert("RGBX")).view(np.int32).ravel()  # (H * W,)
    source = packed.take(columns + np.arange(0, height * width, width)[:, None]).view(np.uint8)  # (H, 4 (W + 3))
    pixels = torch.from_numpy(source).view(height, width + 3, 4).float()
    moved = torch.full((height, width, 4), 1e-3)  # keeps sums just below a whole number from losing a level
    for tap, weights in enumerate(taps):
        moved.addcmul_(pixels[:, tap : tap + width], weights)
    moved_packed = moved.clamp_(0, 255).to(torch.uint8).numpy().view(np.int32)[..., 0]  # (H, W)

    centers = np.arange(width) + 0.5 + shifts[:, None]  # (H, W)
    fill = np.array([*fillcolor, 0], dtype=np.uint8).view(np.int32)
    filled = np.where((centers >= 0) & (centers < width), moved_packed, fill)
    return PIL.Image.frombytes("RGB", image.size, filled.tobytes(), "raw", "RGBX")
