"""timm's RandAugment on single PIL images, with what ours changes: the slow form that ours must equal bit for bit."""

import numpy as np
import PIL.Image
import torch
from timm.data.auto_augment import rand_augment_transform


def pil_rand_augment(description, image_size, mean):
    """At least one bit is kept, and shear and translation shift whole rows or columns."""
    options = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": PIL.Image.Resampling.BICUBIC,
    }
    augment = rand_augment_transform(description, options)
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = lambda *args, original=op.level_fn: (max(1, original(*args)[0]),)
        op.aug_fn = PIL_SHIFTS.get(op.name, op.aug_fn)
    return augment


def pil_shift_rows(image, shifts, fillcolor):
    """Output column x of each row is input column x + shift; bicubic with a = -1."""
    height, width = image.height, image.width
    pixels = torch.from_numpy(np.array(image)).float()  # (H, W, 3)
    whole = np.floor(shifts).astype(int)
    d = torch.from_numpy(shifts - whole).float().view(height, 1, 1)
    taps = (d * (d * (2 - d) - 1), 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1))  # 4 x (H, 1, 1)
    moved = torch.full((height, width, 3), 1e-3)
    for offset, weights in zip((-1, 0, 1, 2), taps, strict=True):
        columns = (np.arange(width) + whole[:, None] + offset).clip(0, width - 1)  # (H, W)
        moved.addcmul_(pixels[torch.arange(height)[:, None], torch.from_numpy(columns)], weights)
    result = moved.clamp_(0, 255).to(torch.uint8).numpy()
    centers = np.arange(width) + 0.5 + shifts[:, None]
    result[(centers < 0) | (centers >= width)] = fillcolor
    return PIL.Image.fromarray(result)


def shear_x(image, amount, fillcolor, **_):
    return pil_shift_rows(image, amount * (np.arange(image.height) + 0.5), fillcolor)


def translate_x(image, amount, fillcolor, **_):
    return pil_shift_rows(image, np.full(image.height, amount * image.width), fillcolor)


def transposed(shift):
    def shift_columns(image, amount, fillcolor, **_):
        turned = image.transpose(PIL.Image.Transpose.TRANSPOSE)
        return shift(turned, amount, fillcolor).transpose(PIL.Image.Transpose.TRANSPOSE)

    return shift_columns


PIL_SHIFTS = {
    "ShearX": shear_x,
    "ShearY": transposed(shear_x),
    "TranslateXRel": translate_x,
    "TranslateYRel": transposed(translate_x),
}
