"""Small images: a folder of two classes, photos, encoded files."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features
from torch.nn.functional import adaptive_avg_pool2d

from livt_hf.data.decoding import decode_image
from livt_hf.data.table import Rows

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


def photo(height: int, width: int, seed: int) -> PIL.Image.Image:
    """Smooth random colors."""
    coarse = PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


def symmetric_features(dataset: Dataset) -> np.ndarray:
    """Features, float32 (N, 192), that a mirrored image shares: mean colors of 8 x 8 tiles, plus those mirrored."""
    images = [decode_image(Rows(dataset).image(row)).float() for row in range(len(dataset))]
    tiles = torch.stack([adaptive_avg_pool2d(image, 8) for image in images])
    return (tiles + tiles.flip(3)).flatten(1).numpy()


def encoded(image: PIL.Image.Image, format: str, **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(color: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (6, 5)) -> bytes:
    """The bytes of a PNG file of one color."""
    return encoded(PIL.Image.new("RGB", size, color), "PNG")


ROWS = [{"bytes": png(), "path": f"{index}.png"} for index in range(3)]


def write_parquet(file: Path, columns: dict, features: dict | None = None) -> None:
    """Write a table; ``features`` adds the metadata of `datasets`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = None if features is None else Features(features).arrow_schema
    pq.write_table(pa.table(columns, schema=schema), file)
