"""Copies of an image are found whatever was done to them, and other images are not."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.Image import Resampling, Transpose

from helpers.images import encoded, photo
from livt_hf.data.decoding import decode_image
from livt_hf.data.tools.duplicates import (
    CANDIDATE,
    DUPLICATE,
    SIZE,
    Groups,
    aligned_similarity,
    descriptors,
    has_contrast,
    join_near_duplicates,
    join_similar,
    near_pairs,
    thumbnail,
)


def texture(seed: int, size=(200, 150)) -> PIL.Image.Image:
    """A picture with structure at all scales, whose amplitude falls as 1/f."""
    random = np.random.default_rng(seed)
    pixels = sum(
        np.asarray(PIL.Image.fromarray(random.normal(size=(n, n)).astype(np.float32)).resize(size, Resampling.BICUBIC))
        * (3 / n)
        for n in (3, 6, 12, 24, 48)
    )
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return PIL.Image.merge("RGB", [PIL.Image.fromarray((pixels * top).astype(np.uint8)) for top in (240, 200, 160)])


def small(image: PIL.Image.Image, quality: int = 95) -> np.ndarray:
    return thumbnail(decode_image(encoded(image, "JPEG", quality=quality)))


def recoded(image: PIL.Image.Image, quality: int) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


CHANGES = {
    "quality 60": lambda image: recoded(image, 60),
    "quality 95": lambda image: recoded(image, 95),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Resampling.BICUBIC),
    "crop of 2 %": lambda image: image.crop((4, 3, image.width, image.height)),
    "crop of 2 % on each side": lambda image: image.crop((4, 3, image.width - 4, image.height - 3)),
    "darker": lambda image: image.point(lambda value: value * 0.7),
    "brighter": lambda image: image.point(lambda value: min(255, value + 40)),
    "gray": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_joined_and_other_images_are_not(change):
    originals = [texture(seed) for seed in range(12)]
    thumbnails = np.stack([small(image) for image in [*originals, *map(CHANGES[change], originals)]])
    groups = Groups(24)
    join_near_duplicates(groups, thumbnails)
    assert groups.roots().tolist() == [*range(12)] * 2


def test_a_mirrored_image_is_no_near_duplicate():
    thumbnails = np.stack([small(texture(0)), small(texture(0).transpose(Transpose.FLIP_LEFT_RIGHT))])
    groups = Groups(2)
    join_near_duplicates(groups, thumbnails)
    assert groups.roots().tolist() == [0, 1]


def test_the_second_test_separates_pictures_of_the_same_composition():
    # The same waves below frequency 8, other ones from there to 11.
    random, order = np.random.default_rng(1), np.arange(12)
    waves = np.cos(np.pi * (np.arange(SIZE) + 0.5) / SIZE * order[:, None])  # (12, S)
    fine = np.maximum(order[:, None], order) >= 8
    amplitude = 1 / np.maximum(np.hypot(order[:, None], order), 1)
    common = random.normal(size=(12, 12))
    thumbnails = []
    for _ in range(2):
        image = waves.T @ (np.where(fine, random.normal(size=(12, 12)), common) * amplitude) @ waves
        thumbnails.append(128 + 100 * image / np.abs(image).max())
    thumbnails = np.stack(thumbnails).round().astype(np.uint8)
    first, second = descriptors(thumbnails)
    aligned = aligned_similarity(*torch.from_numpy(thumbnails).float().split(1))
    assert first @ second > CANDIDATE
    assert aligned < DUPLICATE


def test_a_descriptor_is_the_whitened_cosine_transform():
    # One wave, v = 3 and u = 4 half-periods along the axes: only that coefficient is not zero, whatever brightness.
    angle = np.pi * (np.arange(SIZE) + 0.5) / SIZE
    wave = np.cos(3 * angle)[:, None] * np.cos(4 * angle)
    vector = descriptors(np.stack([128 + 100 * wave, 90 + 30 * wave]).round().astype(np.uint8))
    assert vector.shape == (2, 63)
    assert vector[:, 3 * 8 + 4 - 1] == pytest.approx([1, 1], abs=1e-3)
    two = np.cos(3 * angle)[:, None] * np.cos(4 * angle) + np.cos(6 * angle)[:, None] * np.ones(SIZE) / np.sqrt(2)
    (both,) = descriptors((128 + 50 * two).round().astype(np.uint8)[None])
    assert both[27] / both[47] == pytest.approx(5 / 6, rel=0.02)  # equal amplitudes times the frequencies 5 and 6


def test_images_that_are_small_or_of_one_color_are_not_compared():
    assert thumbnail(torch.zeros(3, 15, 40, dtype=torch.uint8)) is None
    noise = torch.from_numpy(np.random.default_rng(0).integers(120, 124, (3, 40, 40), dtype=np.uint8))
    varied = torch.from_numpy(np.array(photo(40, 40, seed=0))).permute(2, 0, 1)
    assert has_contrast(np.stack([thumbnail(noise), thumbnail(varied)])).tolist() == [False, True]


def test_a_thumbnail_is_the_luminance_of_pil():
    image = photo(SIZE, SIZE, seed=3)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert np.abs(thumbnail(pixels).astype(int) - np.asarray(image.convert("L"))).max() <= 1


def test_pairs_are_those_of_the_whole_similarity_matrix(monkeypatch):
    monkeypatch.setattr("livt_hf.data.tools.duplicates.BLOCK", 7)
    vectors = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = {tuple(pair) for pair in ((vectors @ vectors.T).triu(1) >= 0.8).nonzero().tolist()}
    found = list(near_pairs(vectors, 0.8))
    assert {tuple(pair) for pairs, _ in found for pair in pairs.tolist()} == expected
    assert sum(len(pairs) for pairs, _ in found) == len(expected) > 10
    for pairs, similarities in found:
        assert similarities == pytest.approx((vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1).numpy(), abs=1e-6)
        assert (np.diff(similarities) <= 0).all()


def test_rows_are_joined_transitively_and_no_pair_within_a_group_is_tested(monkeypatch):
    monkeypatch.setattr("livt_hf.data.tools.duplicates.PAIRS_AT_ONCE", 10)
    groups, tested = Groups(101), []

    def confirm(pairs):
        tested.extend(map(tuple, pairs.tolist()))
        return np.ones(len(pairs), dtype=bool)

    vectors = torch.ones(101, 1)
    vectors[100] = -1
    join_similar(groups, vectors, 0.5, confirm)
    assert groups.roots().tolist() == [0] * 100 + [100]
    assert len(tested) < 1000  # of 4,950 pairs
    chain = Groups(6)
    for first, second in ((4, 5), (2, 4), (1, 2)):
        chain.join(first, second)
    assert chain.roots().tolist() == [0, 1, 1, 3, 1, 1]
