"""A small dataset of two classes, as a folder of images."""

from pathlib import Path

import numpy as np
import PIL.Image

COUNTS = {"ant": 5, "bee": 3}


def write_images(folder: Path) -> None:
    """As many training images of each class as `COUNTS` says and one test image of each; no validation split."""
    pixels = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for split, number in (("train", count), ("test", 1)):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                image = PIL.Image.fromarray(pixels.integers(0, 256, (12, 10, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{index}.jpg")
