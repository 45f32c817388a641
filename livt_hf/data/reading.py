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
    return _parquet_images(f"{file}.parquet", column).read(int(row))


@functools.lru_cache(maxsize=512)
def _parquet_images(file: str, column: str) -> ParquetImages:
    return ParquetImages(file, column)


class ParquetImages:
    """Single images of a Parquet file. The row group read last is kept, so that reading in order reads each once."""

    def __init__(self, file: str, column: str):
        self.parquet = pq.ParquetFile(file, memory_map=True)
        self.column = column
        sizes = [self.parquet.metadata.row_group(group).num_rows for group in range(self.parquet.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])  # (groups + 1,)
        self.group, self.images = -1, pa.chunked_array([], pa.binary())

    def read(self, row: int) -> bytes:
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if group != self.group:
            self.images = self.parquet.read_row_group(group, columns=[self.column], use_threads=False).column(0)
            self.group = group
        image = self.images[row - int(self.starts[group])].as_py()
        return image["bytes"] if isinstance(image, dict) else image
