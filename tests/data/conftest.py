"""Datasets that several tests of this folder use."""

import pytest

from helpers.images import photo
from livt_hf.data import load_long_tailed


@pytest.fixture(scope="module")
def digits():
    return load_long_tailed("digits")["train"]


@pytest.fixture
def photos(tmp_path):
    """Two classes: 5 large JPEGs and 3 small PNGs in training, one of each in test."""
    for split, (large, small) in {"train": (5, 3), "test": (1, 1)}.items():
        for index in range(large):
            file = tmp_path / "photos" / split / "large" / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(60, 80 if index else 90, seed=index + 10 * (split == "test")).save(file, quality=95)
        for index in range(small):
            file = tmp_path / "photos" / split / "small" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(20, 16, seed=100 + index + 10 * (split == "test")).save(file)
    return load_long_tailed(tmp_path / "photos")
