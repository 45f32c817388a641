"""Images to measure with: JPEGs as large as photographs, or small PNGs."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from livt_hf.data.dataset import MAX_SIDE
from livt_hf.reporting.provenance import available_cores

PHOTO = (375, 500)  # height and width, the usual ones in ImageNet
NUM_CLASSES = 10


def is_small(image_size: int) -> bool:
    """Whether images of this size are decoded once and kept in memory."""
    return image_size <= MAX_SIDE


def write_images(folder: Path, count: int, image_size: int, quality: int = 90) -> list[Path]:
    """Write the images for a benchmark at ``image_size``, in a folder per class: PNGs of that size if it is small,
    otherwise photos."""
    if is_small(image_size):
        return _write(folder, count, ".png", (image_size, image_size))
    return _write(folder, count, ".jpg", PHOTO, quality=quality)


def _write(folder: Path, count: int, suffix: str, size: tuple[int, int], **options: Any) -> list[Path]:
    for label in range(min(NUM_CLASSES, count)):
        (folder / str(label)).mkdir(parents=True)
    files = [folder / str(index % NUM_CLASSES) / f"{index}{suffix}" for index in range(count)]

    def write(index: int) -> None:
        PIL.Image.fromarray(photo(index, *size)).save(files[index], **options)

    with ThreadPoolExecutor(available_cores()) as pool:  # numpy and Pillow release the interpreter's lock
        list(pool.map(write, range(count)))
    return files


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) with the amplitude spectrum of photographs, 1 / frequency ** 1.4, in correlated colors: 0.34
    bytes per pixel as JPEG at quality 90, as real photographs of 500 x 375 have (Grocery Store Dataset)."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(3, height, width)) * 0.3 + random.normal(size=(height, width))
    channels = np.fft.irfft2(np.fft.rfft2(noise) / _amplitudes(height, width), (height, width))
    channels = (channels - channels.mean()) / channels.std() * 55 + 118  # mean and contrast of ImageNet
    return np.ascontiguousarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@functools.cache
def _amplitudes(height: int, width: int) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    return frequency**1.4
