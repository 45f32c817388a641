"""Normalization, random erasing and mixup of batches, one after the other and as one compiled program."""

import math
import random

import pytest
import torch
from torchvision.transforms import v2

from helpers.gpu import on_gpu
from livt_hf.data import Mixup, erase, normalize
from livt_hf.data.batch_ops import augment, erased_pixels, normal_noise, statistics
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD, random_erase_box


def number_of_stream(seed, counter):
    """Output ``counter`` of splitmix64 and Box-Muller's cosine of its two 24-bit fractions, in Python's integers."""
    bits = (seed + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    bits ^= bits >> 31
    first, second = (bits >> 40) + 1, bits >> 16 & 0xFFFFFF
    return math.sqrt(-2 * math.log(first / 2**24)) * math.cos(2 * math.pi * second / 2**24)


def test_noise_is_splitmix64_and_box_muller():
    seeds = torch.tensor([0, 1, 2**62 - 1, 1234567890123456789])
    counters = torch.tensor([0, 1, 2, 150527])
    noise = normal_noise(seeds[:, None], counters)
    assert noise.dtype == torch.float32
    expected = [[number_of_stream(seed, counter) for counter in counters.tolist()] for seed in seeds.tolist()]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_noise_is_normal_and_uncorrelated():
    """Moments within 5 standard errors; neighbors in a stream, and streams of neighboring seeds."""
    noise = normal_noise(torch.arange(400)[:, None], torch.arange(2500)).double()
    error = noise.numel() ** -0.5
    assert abs(noise.mean()) < 5 * error
    assert abs(noise.square().mean() - 1) < 5 * error * 2**0.5
    assert abs(noise.pow(3).mean()) < 5 * error * 15**0.5
    assert abs(noise.pow(4).mean() - 3) < 5 * error * 96**0.5
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 5 * error
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 * error
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_erase_fills_the_box_with_the_numbers_of_the_samples_seed():
    boxes = torch.tensor([[2, 3, 5, 4], [0, 0, 0, 0], [0, 0, 8, 8]])
    seeds = torch.tensor([11, 12, 13])
    batch = erase(torch.full((3, 3, 8, 8), 9.0), boxes, seeds)
    expected = [[[number_of_stream(11, (y * 4 + x) * 3 + c) for x in range(4)] for y in range(5)] for c in range(3)]
    torch.testing.assert_close(batch[0, :, 2:7, 3:7], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert (batch[0] == 9).sum() == 3 * (64 - 20)
    assert (batch[1] == 9).all()
    alone = erase(torch.full((1, 3, 8, 8), 9.0), boxes[2:], seeds[2:], erased_pixels(boxes[2:]))
    assert torch.equal(alone[0], batch[2])
    assert erased_pixels(boxes) == 20 + 64
    untouched = torch.rand(2, 3, 8, 8)
    assert torch.equal(erase(untouched.clone(), torch.zeros(2, 4, dtype=torch.int64), seeds[:2]), untouched)


def test_normalize_equals_to_tensor_and_normalize():
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    expected = v2.functional.normalize(image.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    batch = normalize(image[None], IMAGENET_MEAN, IMAGENET_STD)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[0], expected, rtol=0, atol=1e-6)


# The whole


def training_batch(seed, device, size=12, batch_size=16):
    """As from the loader: pixels channels last in memory, about half of the images with a box to erase."""
    generator = torch.Generator().manual_seed(seed)
    random.seed(seed)
    boxes = torch.tensor([random_erase_box(size, 0.5) for _ in range(batch_size)])
    pixels = torch.randint(256, (batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    batch = {
        "pixel_values": pixels.permute(0, 3, 1, 2),
        "erase_box": boxes,
        "erase_seed": torch.randint(2**62, (batch_size,), generator=generator),
        "labels": torch.randint(3, (batch_size,), generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()} | {"num_erased": erased_pixels(boxes)}


def augmented(function, step, device, mixup):
    batch = training_batch(step, device)
    drawn = None if mixup is None else mixup.draw_tensor(step, batch["pixel_values"].shape[-2:], device)
    return function(batch, *statistics(IMAGENET_MEAN, IMAGENET_STD, device), mixup, drawn)


def test_augment_is_its_parts():
    mixup, batch = Mixup(3, seed=1), training_batch(4, "cpu")
    pixels = normalize(batch["pixel_values"], IMAGENET_MEAN, IMAGENET_STD)
    pixels = erase(pixels, batch["erase_box"], batch["erase_seed"])
    for found, expected in (
        (augmented(augment, 4, torch.device("cpu"), mixup), mixup(pixels, batch["labels"], 4)),
        (augmented(augment, 4, torch.device("cpu"), None), (pixels, batch["labels"])),
    ):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "aot_eager"),
        pytest.param("cpu", "inductor", marks=pytest.mark.slow),
        pytest.param("cuda", "inductor", marks=on_gpu),
    ],
)
def test_one_compiled_program_augments_every_batch(device, backend, mixed):
    """Steps with MixUp, with CutMix and with any number of erased pixels, without compiling again."""
    torch._dynamo.reset()
    mixup = Mixup(3, seed=1) if mixed else None
    compiled = torch.compile(augment, dynamic=False, fullgraph=True, backend=backend)
    kinds = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(8):
            pixels, labels = augmented(augment, step, torch.device(device), mixup)
            pixels_compiled, labels_compiled = augmented(compiled, step, torch.device(device), mixup)
            torch.testing.assert_close(pixels_compiled, pixels, rtol=0, atol=1e-5)
            torch.testing.assert_close(labels_compiled, labels, rtol=0, atol=1e-6)
            assert pixels_compiled.is_contiguous()
            kinds.add(mixup is not None and mixup.draw(step, 12, 12)[1] is None)
    assert len(kinds) == 1 + mixed
