"""Every operation on batches against timm's and Pillow's on single images."""

import numpy as np
import PIL.Image
import pytest
import torch
from timm.data.auto_augment import NAME_TO_OP

from helpers.rand_augment import PIL_SHIFTS
from livt_hf.data.image_ops import OPERATIONS, _blend

FILL = (124, 116, 104)
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")


def batches():
    """Noise, smooth colors, few colors and single colors, in several sizes."""
    random = np.random.default_rng(0)
    for height, width in ((32, 32), (40, 56), (7, 5), (3, 2), (1, 1), (96, 64)):
        noise = random.integers(0, 256, (16, height, width, 3), dtype=np.uint8)
        coarse = torch.from_numpy(random.random((16, 3, 4, 4), dtype=np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255)
        smooth = smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        single = np.broadcast_to(noise[:, :1, :1], noise.shape)
        yield from (noise, smooth, smooth // 64 * 50, np.ascontiguousarray(single))


def levels(name, count, random):
    """What timm's function of this name may be called with, the ends of the range included."""
    if name.startswith("Posterize"):
        return random.integers(1, 9, count)
    if name == "SolarizeAdd":
        return random.choice([0, 1, 60, 128], count)
    if name.startswith("Solarize"):
        return random.choice([0, 1, 100, 128, 255, 256], count)
    if name.startswith(ENHANCEMENTS):
        return random.choice([0.1, 0.5, 1.0, 1.3, 1.9, *random.random(10) * 2], count)
    if name == "Desaturate":
        return random.choice([0.5, 1.0, *random.random(10)], count)
    return random.choice([-1.2, -0.3, 0.0, 0.25, 0.45, *random.random(10) - 0.5], count)


def one_by_one(function, images, amounts):
    options = {"fillcolor": FILL, "resample": PIL.Image.BICUBIC}
    pairs = zip(images, amounts, strict=True)
    return np.stack([np.asarray(function(PIL.Image.fromarray(image), *amount, **options)) for image, amount in pairs])


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_batches_equal_those_on_single_images(name):
    random = np.random.default_rng(1)
    takes_level = name not in ("AutoContrast", "Equalize", "Invert")
    for images in batches():
        amounts = levels(name, len(images), random)
        arguments = [(amount,) if takes_level else () for amount in amounts.tolist()]
        expected = one_by_one(PIL_SHIFTS.get(name, NAME_TO_OP[name]), images, arguments)
        before = images.copy()
        ours = OPERATIONS[name](images, amounts, FILL)
        assert ours.dtype == np.uint8
        assert np.array_equal(ours, expected)
        assert np.array_equal(images, before)


def test_blends_equal_pillows_for_every_pair_of_values():
    first, second = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    factors = np.array([0.1, 1 / 3, 0.7, 1.0, 1.1, 1.9, 2.0, *np.random.default_rng(0).random(20) * 2])
    images = [np.broadcast_to(values[None, :, :, None], (len(factors), 256, 256, 1)) for values in (first, second)]
    for factor, blended in zip(factors, _blend(*images, factors)[..., 0], strict=True):
        expected = PIL.Image.blend(PIL.Image.fromarray(first), PIL.Image.fromarray(second), factor)
        assert np.array_equal(blended, np.asarray(expected))


@pytest.mark.parametrize("name", PIL_SHIFTS)
@pytest.mark.parametrize("amount", [-0.41, -0.3, 0.0, 0.113, 1.2])
def test_shear_and_translation_equal_pillows(name, amount):
    images = list(batches())[5]  # smooth, 40 x 56
    amounts = np.full(len(images), amount)
    ours = OPERATIONS[name](images, amounts, FILL).astype(int)
    theirs = one_by_one(NAME_TO_OP[name], images, [(amount,)] * len(images))
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.005
