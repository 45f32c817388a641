"""Path or row -> encoded bytes -> uint8 tensor (3, H, W).

A path is a file, or one row of a Parquet file, ``FILE.parquet#COLUMN/ROW``.

JPEG is decoded by torchvision's libjpeg, several times faster than PIL; other formats, and JPEGs that torchvision
refuses, by PIL. The EXIF orientation is applied. The alpha channel is dropped and colors are kept, as by PIL's
``convert("RGB")`` and therefore by transformers' pipelines. 16-bit gray is scaled to 8 bits. The first frame of an
animation is used.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchvision.io import ImageReadMode

# The limit above which PIL raises DecompressionBombError, applied to JPEG too: about 179 million pixels.
MAX_PIXELS = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 89_478_485)


class BadImageError(ValueError):
    """An unreadable image that cannot be skipped. The message is one line, also when raised in a DataLoader worker."""

    def __init__(self, message: str):
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


def decode_image(image: dict | bytes | str | Path, name: str | None = None) -> torch.Tensor:
    """Decode one image to RGB, uint8 (3, H, W).

    Args:
        image: ``{"bytes": ..., "path": ...}`` (a row's image, bytes first), the encoded bytes, or a path.
        name: name of the image in error messages if it has no path.

    Raises:
        ValueError: an unreadable file, or bytes that are not a complete image; the message names the image.
    """
    data, name = encoded_image(image, name)
    try:
        return _decode(data)
    except Exception as error:  # decoders raise errors of many kinds
        raise ValueError(f"{name}: {_reason(error, data)}") from error


def encoded_image(image: dict | bytes | str | Path | None, name: str | None = None) -> tuple[bytes, str]:
    """The stored bytes of an image and its name for error messages. Raises ValueError as `decode_image` does."""
    data, path = None, None
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
    elif isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
    elif image is not None:
        path = os.fspath(image)
    name = path or name or "image"
    if data is None:
        if path is None:
            raise ValueError(f"{name}: contains neither an image nor a path")
        try:
            data = read_image(path)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"{name}: {_reason(error, None)}") from error
    return data, name


def _decode(data: bytes) -> torch.Tensor:
    if data[:3] == b"\xff\xd8\xff":
        height, width, channels = _jpeg_size(data)
        if height * width > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
        if channels in (1, 3):
            try:
                return _decode_jpeg(data)
            except RuntimeError:
                pass  # PIL reads some that libjpeg refuses
    return _decode_with_pil(data)


def _decode_jpeg(data: bytes) -> torch.Tensor:
    """`torchvision.io.decode_jpeg` without its deprecation warning, which takes 5 % of the decoding time."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torch.ops.image.decode_jpeg(encoded, ImageReadMode.RGB.value, apply_exif_orientation=True)


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Height, width and channels from the frame header of a JPEG; zeros if there is none."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start-of-frame segment
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return height, width, data[position + 9]
        if marker == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0, 0


def _decode_with_pil(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about palettes and large or unusual files
        with PIL.Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = PIL.ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit gray, which PIL opens as 16 or 32 bits
                gray = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
                image = PIL.Image.fromarray(np.rint(gray / 257).astype(np.uint8))
            elif image.mode == "F" and not np.isfinite(np.asarray(image)).all():
                raise ValueError("it contains pixels that are not finite")
            pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W), channels last in memory


def _reason(error: Exception, data: bytes | None) -> str:
    if data is not None and len(data) == 0:
        return "the file is empty"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    verb = "read" if data is None else "decoded"
    return f"cannot be {verb} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def read_image(path: str | Path) -> bytes:
    """The encoded bytes of a file or of ``FILE.parquet#COLUMN/ROW``."""
    file, separator, row = str(path).rpartition(".parquet#")
    if not separator:
        with open(path, "rb") as stream:
            return stream.read()
    column, _, row = row.rpartition("/")
    return read_row(f"{file}.parquet", column, int(row))


def read_row(file: str, column: str, row: int) -> bytes:
    """The encoded bytes of one row of a Parquet file."""
    _, starts = _open(file)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    image = _row_group(file, column, group)[row - int(starts[group])].as_py()
    return image["bytes"] if isinstance(image, dict) else image


@functools.lru_cache(maxsize=512)
def _open(file: str) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file, and the first row of each row group followed by the number of rows, (groups + 1,)."""
    parquet = pq.ParquetFile(file, memory_map=True)
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    return parquet, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=4)  # sequential reads use each group once; more would fill the memory
def _row_group(file: str, column: str, group: int) -> pa.ChunkedArray:
    return _open(file)[0].read_row_group(group, columns=[column], use_threads=False).column(0)
