"""Transforms against torchvision, timm, PIL and transformers."""

import io
import random

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import InterpolationMode

from livt_hf.data import EvalTransform, FinetuneTransform, PretrainTransform, normalize
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, random_erase_box


def photo(height, width, seed=0):
    """Smooth random colors (3, H, W) in the memory layout of a decoded image."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return image.mul(255).to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


# Pretraining


def test_pretraining_output():
    seed_all(0)
    sample = PretrainTransform(32, num_patches=64)(photo(60, 90))
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert sample["pixel_values"].dtype == torch.uint8
    assert sample["noise"].shape == (64,)
    assert 0 <= sample["noise"].min() < 0.2 < 0.8 < sample["noise"].max() < 1


def test_everything_random_comes_from_the_global_generators():
    for transform in (PretrainTransform(32, 64), FinetuneTransform(32, random_erasing=1.0)):
        samples = []
        for seed in (5, 5, 6):
            seed_all(seed)
            samples.append(transform(photo(60, 90)))
        assert all(torch.equal(samples[0][key], samples[1][key]) for key in samples[0])
        assert not any(torch.equal(samples[0][key], samples[2][key]) for key in samples[0])


def test_flips_are_exact_and_half_of_the_samples():
    image = photo(32, 32)
    seed_all(0)
    transform = PretrainTransform(32, 1, min_crop_scale=1.0)
    flipped = 0
    for _ in range(200):
        pixels = transform(image)["pixel_values"]
        # with scale 1 the crop of a square is the square, or the nearest ratio that fits
        flipped += torch.equal(pixels, image.flip(-1))
        assert torch.equal(pixels, image) or torch.equal(pixels, image.flip(-1))
    assert 70 < flipped < 130


# Fine-tuning


def test_finetuning_output_and_switching_parts_off():
    seed_all(0)
    sample = FinetuneTransform(32, random_erasing=1.0)(photo(60, 90))
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert sample["pixel_values"].dtype == torch.uint8
    assert (sample["erase_box"].shape, sample["erase_box"].dtype) == ((4,), torch.int64)
    assert (sample["erase_seed"].shape, sample["erase_seed"].dtype) == ((), torch.int64)
    plain = FinetuneTransform(32, 1.0, 0.0, rand_augment=None, random_erasing=0.0)(photo(32, 32))
    assert torch.equal(plain["pixel_values"], photo(32, 32))
    assert plain["erase_box"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("description", ["rand-q9", "augment"])
def test_an_unknown_rand_augment_is_named(description):
    with pytest.raises(ValueError, match=f"rand_augment: '{description}' is invalid; use one like"):
        FinetuneTransform(32, rand_augment=description)


@pytest.mark.parametrize(
    ("option", "value"), [("min_crop_scale", -0.1), ("horizontal_flip", 1.5), ("random_erasing", 2)]
)
def test_fractions_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"^{option}: {value} must be between 0 and 1"):
        FinetuneTransform(32, **{option: value})


def test_erase_boxes_are_timms():
    """timm erases a tensor in place; the same generator state must give the same box."""
    from timm.data.random_erasing import RandomErasing

    theirs = RandomErasing(0.5, mode="pixel", device="cpu")
    erased = 0
    for seed in range(300):
        seed_all(seed)
        image = torch.zeros(3, 32, 32)
        theirs(image)
        seed_all(seed)
        top, left, height, width = random_erase_box(32, 0.5)
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[top : top + height, left : left + width] = True
        assert torch.equal((image != 0).all(0), expected)
        erased += height > 0
    assert 110 < erased < 190


# Evaluation


@pytest.mark.parametrize(("size", "shortest_edge"), [(32, 36), (96, 109), (224, 256), (256, 256), (384, 384)])
@pytest.mark.parametrize("shape", [(60, 91), (75, 50), (33, 33), (400, 301)])
def test_evaluation_equals_the_processor_that_is_saved_with_the_model(size, shortest_edge, shape):
    from transformers import BeitImageProcessor

    transform = EvalTransform(size)
    assert transform.shortest_edge == shortest_edge
    processor = BeitImageProcessor(
        do_resize=True,
        size={"shortest_edge": shortest_edge},
        resample=PIL.Image.BICUBIC,
        do_center_crop=True,
        crop_size={"height": size, "width": size},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    image = photo(*shape)
    pixels = transform(image)["pixel_values"]
    assert pixels.shape == (3, size, size)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(pixels[None], IMAGENET_MEAN, IMAGENET_STD), expected, rtol=0, atol=1e-5)


# Faithful to the usual PIL pipeline


def test_pixel_statistics_agree_with_the_pil_reference():
    """Channel means and standard deviations of many random crops, ours against PIL decode + RandomResizedCrop.

    Both sides see the same JPEG and draw 300 crops; each crop's mean varies by about 25 gray levels, so the means of
    300 differ by 25 * sqrt(2 / 300) = 2 (one standard error). Without any randomness the two resizers differ by at
    most one level. Tolerance: 3 standard errors of the crops, measured on the spot.
    """
    from torchvision import transforms

    from livt_hf.data import decode_image

    buffer = io.BytesIO()
    PIL.Image.fromarray(photo(150, 200).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.2, 1), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    seed_all(0)
    theirs = torch.stack([reference(PIL.Image.open(buffer).convert("RGB")) * 255 for _ in range(300)])
    transform = PretrainTransform(32, 1)
    ours = torch.stack([transform(decode_image(buffer.getvalue()))["pixel_values"].float() for _ in range(300)])
    for statistic in (lambda crops: crops.mean((2, 3)), lambda crops: crops.std((2, 3))):
        ours_each, theirs_each = statistic(ours), statistic(theirs)  # (300, 3)
        standard_error = ((ours_each.var(0) + theirs_each.var(0)) / 300).sqrt()
        assert ((ours_each.mean(0) - theirs_each.mean(0)).abs() < 3 * standard_error).all()
