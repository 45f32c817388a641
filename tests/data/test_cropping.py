"""Random crops against torchvision's, and the crops of many images at once against one by one."""

import itertools
import math

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from helpers.images import photo
from livt_hf.data import EvalTransform
from livt_hf.data.cropping import Crop, crop_many, crop_one, random_crop, random_crop_box
from livt_hf.data.dataset import seed_generators


def pixels(height, width, seed=0):
    """(3, H, W) in the memory layout of a decoded image."""
    return torch.from_numpy(np.array(photo(height, width, seed))).permute(2, 0, 1)


def test_crop_boxes_have_the_distribution_of_torchvision():
    """Area, aspect ratio and center of 4,000 crops: means agree within 4 standard errors.

    The crop's box is read off an image whose channels hold its row and column numbers.
    """
    height, width, draws = 120, 200, 4000
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None, :].expand(height, width)
    image = torch.stack([rows, columns, columns]).to(torch.uint8)

    def features(top, left, crop_height, crop_width):
        return [
            crop_height * crop_width,
            math.log(crop_width / crop_height),
            top + crop_height / 2,
            left + crop_width / 2,
        ]

    seed_generators(0)
    theirs, ours = [], []
    for _ in range(draws):
        params = v2.RandomResizedCrop(32, scale=(0.2, 1)).make_params([image])
        theirs.append(features(params["top"], params["left"], params["height"], params["width"]))
    for _ in range(draws):
        ours.append(features(*random_crop_box(height, width, 0.2)))
    theirs, ours = np.array(theirs), np.array(ours)
    standard_error = np.sqrt((theirs.var(0) + ours.var(0)) / draws)
    assert (np.abs(theirs.mean(0) - ours.mean(0)) < 4 * standard_error).all()
    assert np.abs(theirs.std(0) / ours.std(0) - 1).max() < 0.06


def test_a_whole_crop_equals_torchvision_and_pil():
    image = pixels(50, 50)
    seed_generators(1)
    ours = crop_one(image[:, :, :40], random_crop(50, 40, 1.0, flip_probability=0.0), 24)
    # scale 1 on 50 x 40: only ratio 4/5 fits exactly; otherwise the fallback takes the whole image as well
    expected = v2.functional.resize(image[:, :, :40], [24, 24], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(ours, expected)
    pil = PIL.Image.fromarray(image[:, :, :40].permute(1, 2, 0).numpy().copy()).resize((24, 24), PIL.Image.BICUBIC)
    assert (ours.permute(1, 2, 0).int() - torch.from_numpy(np.array(pil)).int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (31, 997)])
def test_odd_shapes_can_be_cropped(shape):
    seed_generators(0)
    for _ in range(20):
        assert crop_one(pixels(*shape), random_crop(*shape, 0.2, 0.5), 16).shape == (3, 16, 16)
    assert EvalTransform(16)(pixels(*shape))["pixel_values"].shape == (3, 16, 16)


def noise(count, height, width):
    """uint8 (N, H, W, 3)."""
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()


def assert_equal_to_single_crops(images, numbers, crops, size):
    together = crop_many(images, np.array(numbers), crops, size)
    assert together.shape == (len(crops), size, size, 3)
    for number, crop, result in zip(numbers, crops, together, strict=True):
        alone = crop_one(torch.from_numpy(images[number]).permute(2, 0, 1), crop, size)
        assert torch.equal(result.permute(2, 0, 1), alone), crop


def test_crops_of_every_size_equal_single_crops():
    """All heights and widths up to 20 x 24, some of them the output's, at varying places of three images."""
    crops = [
        Crop((3 * height) % (21 - height), (5 * width) % (25 - width), height, width, (height + width) % 3 == 0)
        for height, width in itertools.product(range(1, 21), range(1, 25))
    ]
    assert_equal_to_single_crops(noise(3, 20, 24), [index % 3 for index in range(len(crops))], crops, 16)


@pytest.mark.parametrize(("shape", "size"), [((32, 32), 32), ((64, 48), 32), ((28, 28), 40), ((8, 8), 8), ((1, 5), 4)])
def test_random_crops_equal_single_crops(shape, size):
    seed_generators(0)
    crops = [random_crop(*shape, 0.08, 0.5) for _ in range(300)]
    assert_equal_to_single_crops(noise(50, *shape), [index % 50 for index in range(300)], crops, size)
