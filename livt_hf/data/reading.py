"""The encoded bytes of an image: a file's, or those of one row of a Parquet file, ``FILE.parquet#COLUMN/ROW``."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def read_image(path: str | Path) -> bytes:
    file, separator, row = str(path).rpartition(".parquet#")
    if not separator:
        with open(path, "rb") as stream:
            return stream.read()
    column, _, row = row.rpartition("/")
    return read_row(f"{file}.parquet", column, int(row))


def read_row(file: str, column: str, row: int) -> bytes:
    """One image of a Parquet file."""
    _, starts = _open(file)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    image = _row_group(file, column, group)[row - int(starts[group])].as_py()
    return image["bytes"] if isinstance(image, dict) else image


@functools.lru_cache(maxsize=512)
def _open(file: str) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file, and the first row of each of its groups and the end, (groups + 1,)."""
    parquet = pq.ParquetFile(file, memory_map=True)
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    return parquet, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=4)  # reading in order reads each group once; of all files they would fill the memory
def _row_group(file: str, column: str, group: int) -> pa.ChunkedArray:
    return _open(file)[0].read_row_group(group, columns=[column], use_threads=False).column(0)
