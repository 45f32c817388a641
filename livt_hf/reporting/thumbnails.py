"""Thumbnails of a page: an image with a caption, embedded in the HTML."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from .blocks import data_uri, escape_html

SIZE = 160  # longer side in pixels


def thumbnail(image: np.ndarray, alt: str, title: str, *lines: str) -> str:
    """A `<figure>` with the image, uint8 (H, W, 3), and its caption, plain text with the title in bold."""
    small = max(image.shape[:2]) <= SIZE // 2
    caption = "<br>".join(map(escape_html, lines))
    return (
        f'<figure><img class="{"pixels" if small else "photo"}" alt="{escape_html(alt)}" '
        f'src="{data_uri(_encode(image, small), "png" if small else "jpeg")}">'
        f"<figcaption><b>{escape_html(title)}</b><br>{caption}</figcaption></figure>"
    )


def _encode(image: np.ndarray, small: bool) -> bytes:
    """Small images as PNG, unscaled; others as JPEG, scaled to at most `SIZE` pixels."""
    picture = PIL.Image.fromarray(image)
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG")
    else:
        picture.thumbnail((SIZE, SIZE))
        picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
