"""Sets of small images (CIFAR, digits) are decoded once and kept as uint8, since decoding would cost the most."""

from __future__ import annotations

import numpy as np
import torch

from .decoding import decode_image
from .rows import Rows

MAX_SIDE = 64
MAX_BYTES = 2**28  # 256 MiB: 87,000 images of 32 x 32


class DecodedImages:
    """The images of ``rows`` as uint8 (N, H, W, 3), those that have the size of the first and can be read."""

    def __init__(self, rows: Rows, first: torch.Tensor):
        height, width = first.shape[-2:]
        self.pixels = torch.zeros(len(rows), height, width, 3, dtype=torch.uint8)
        self.present = np.zeros(len(rows), dtype=bool)  # (N,)
        for index in range(len(rows)):
            try:
                image = decode_image(rows.image(index))
            except ValueError:
                continue  # reported by whoever asks for it
            if image.shape == first.shape:
                self.pixels[index] = image.permute(1, 2, 0)
                self.present[index] = True

    def get(self, index: int) -> torch.Tensor | None:
        return self.pixels[index].permute(2, 0, 1) if self.present[index] else None  # (3, H, W)


def decode_if_small(rows: Rows) -> DecodedImages | None:
    """All images decoded, if the first one tells that they are small and fit; otherwise None."""
    try:
        first = decode_image(rows.image(0)) if len(rows) else None
    except ValueError:
        return None
    if first is None or max(first.shape) > MAX_SIDE or len(rows) * first.numel() > MAX_BYTES:
        return None
    return DecodedImages(rows, first)
