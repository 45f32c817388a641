"""`livt dataset prepare`: rewrite a dataset once with small images, as sharded Parquet in the Hugging Face layout.

An image whose shorter side is above the limit is scaled down (bicubic, antialiased) and written as JPEG; others keep
their bytes. Shards are renamed to their final name once they are complete, so that an interrupted run can continue. Row
groups contain 8 images, so that reading a single image loads little else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, Features, Image

from ...files import check_new_folder, write_text
from ..decoding import decode_image, encoded_image
from ..table import IMAGE_TYPE, Rows
from ..transforms import resize_shorter_side
from .parallel import Chunk, map_chunks, split_into_chunks

IMAGES_PER_SHARD = 1024
IMAGES_PER_ROW_GROUP = 8
PLAN = "prepare.json"


@dataclass
class PrepareResult:
    """Result of `prepare_dataset`. Sizes in bytes, decoding in milliseconds per image on one core."""

    images: int
    bad_images: list[str]
    bytes_before: int
    bytes_after: int
    images_written: int
    seconds: float
    decode_before: float
    decode_after: float

    def __str__(self) -> str:
        earlier = self.images - self.images_written
        return (
            f"{self.images:,} images"
            + (f", {earlier:,} of them prepared earlier" if earlier else "")
            + f"; {len(self.bad_images)} left out because they cannot be read\n"
            f"{self.seconds:.1f} s, {self.images_written / self.seconds:.0f} images/s\n"
            f"size {self.bytes_before / 2**20:.1f} -> {self.bytes_after / 2**20:.1f} MiB, decoding "
            f"{self.decode_before:.2f} -> {self.decode_after:.2f} ms per image"
        )


def prepare_dataset(
    splits: DatasetDict,
    output_dir: str | Path,
    *,
    shorter_side: int = 256,
    quality: int = 85,
    num_workers: int | None = None,
    max_bad_images: int = 100,
) -> PrepareResult:
    """Write ``splits`` to ``output_dir``, a Parquet folder that `load_long_tailed` can open.

    Args:
        shorter_side: limit in pixels; larger images are scaled down to it.
        quality: JPEG quality of the images that are scaled down.
        num_workers: number of processes; None uses one per core, 0 runs in this process.
        max_bad_images: unreadable images are left out and listed in ``bad_images.log``; more than this many are an
            error.

    Raises:
        ValueError: an option out of range, too many unreadable images, or an output folder with other content.
    """
    output_dir = Path(output_dir)
    start = time.perf_counter()
    _check_plan(splits, output_dir, shorter_side, quality)
    rows_of = {split: Rows(rows) for split, rows in splits.items()}
    schema = Features({"image": Image(), "label": splits["train"].features["label"]}).arrow_schema
    chunks = split_into_chunks(rows_of, IMAGES_PER_SHARD)
    file_of = {chunk: _shard_file(output_dir, chunk, len(rows_of[chunk.split])) for chunk in chunks}
    shards = {file: _read_shard(file) for file in file_of.values() if file.is_file()}
    missing = {chunk: file for chunk, file in file_of.items() if file not in shards}

    work = functools.partial(_write_shard, output_dir, schema, shorter_side, quality)
    for chunk, shard in map_chunks(work, rows_of, list(missing), num_workers, "preparing"):
        shards[missing[chunk]] = shard
        bad = [reason for shard in shards.values() for reason in shard.bad_images]
        if bad:
            (output_dir / "bad_images.log").write_text("".join(f"{reason}\n" for reason in bad), encoding="utf-8")
        if len(bad) > max_bad_images:
            raise ValueError(
                f"max_bad_images: {len(bad)} images cannot be read, more than the limit of {max_bad_images}; see "
                f"{output_dir}/bad_images.log; raise the limit, or repair them and name a new folder"
            )

    done, first = shards.values(), file_of[next(iter(file_of))]
    return PrepareResult(
        images=sum(shard.images for shard in done),
        bad_images=[reason for shard in done for reason in shard.bad_images],
        bytes_before=sum(shard.bytes_before for shard in done),
        bytes_after=sum(file.stat().st_size for file in shards),
        images_written=sum(shards[file].images for file in missing.values()),
        seconds=time.perf_counter() - start,
        decode_before=_decode_time([rows_of["train"].image(row) for row in range(min(100, len(rows_of["train"])))]),
        decode_after=_decode_time(pq.read_table(first, columns=["image"])["image"].slice(0, 100).to_pylist()),
    )


@dataclass
class Shard:
    """Statistics of a shard, stored in its file's metadata for a run that continues."""

    images: int
    bytes_before: int
    bad_images: list[str]


def _shard_file(output_dir: Path, chunk: Chunk, num_rows: int) -> Path:
    return output_dir / f"{chunk.split}-{chunk.number:05d}-of-{-(-num_rows // IMAGES_PER_SHARD):05d}.parquet"


def _check_plan(splits: DatasetDict, output_dir: Path, shorter_side: int, quality: int) -> None:
    """Refuse to continue a run that used different data or options."""
    for option, value, low, high in (("shorter_side", shorter_side, 1, 65535), ("quality", quality, 1, 100)):
        if not low <= value <= high:
            raise ValueError(f"{option}: {value} must be between {low} and {high}")
    plan = {
        "shorter_side": shorter_side,
        "quality": quality,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "data": {split: rows._fingerprint for split, rows in splits.items()},
    }
    file = output_dir / PLAN
    if file.is_file():
        if _read_plan(file) != plan:
            raise ValueError(
                f"output_dir: {str(output_dir)!r} was prepared from other data or with other options; name a new folder"
            )
        return
    check_new_folder(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(plan, indent=2))


def _read_plan(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None  # damaged


def _write_shard(
    output_dir: Path, schema: pa.Schema, shorter_side: int, quality: int, rows: Rows, chunk: Chunk
) -> Shard:
    images, labels, shard = [], [], Shard(0, 0, [])
    for row in chunk.rows:
        try:
            data, name = encoded_image(rows.image(row), f"{chunk.split} row {row}")
            small = _shrink(data, shorter_side, quality, name)
        except ValueError as error:
            shard.bad_images.append(str(error))
            continue
        images.append({"bytes": small, "path": Path(name).name})
        labels.append(rows.label(row))
        shard.bytes_before += len(data)
    shard.images = len(images)
    table = pa.table([pa.array(images, IMAGE_TYPE), pa.array(labels, pa.int64())], schema=schema)
    table = table.replace_schema_metadata({**schema.metadata, b"livt_hf": json.dumps(asdict(shard)).encode()})
    file = _shard_file(output_dir, chunk, len(rows))
    unfinished = file.with_suffix(".unfinished")
    pq.write_table(
        table,
        unfinished,
        row_group_size=IMAGES_PER_ROW_GROUP,
        compression="none",  # images are compressed already
        use_dictionary=False,
        write_statistics=False,
    )
    unfinished.replace(file)
    return shard


def _read_shard(file: Path) -> Shard:
    return Shard(**json.loads(pq.read_schema(file).metadata[b"livt_hf"]))


def _shrink(data: bytes, shorter_side: int, quality: int, name: str) -> bytes:
    """The image scaled down to ``shorter_side`` as JPEG; the same bytes if it is not larger."""
    image = decode_image(data, name)
    if min(image.shape[-2:]) <= shorter_side:
        return data
    small = resize_shorter_side(image, shorter_side)
    buffer = io.BytesIO()
    PIL.Image.fromarray(small.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _decode_time(images: list[dict]) -> float:
    """Milliseconds per readable image."""
    start, decoded = time.process_time(), 0
    for image in images:
        with contextlib.suppress(ValueError):
            decode_image(image)
            decoded += 1
    return 1000 * (time.process_time() - start) / max(decoded, 1)
