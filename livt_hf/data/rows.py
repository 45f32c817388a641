"""Single rows of a Dataset, fast: straight from its Arrow columns, a tenth of the time of ``dataset[i]``."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
from datasets import Dataset


class Rows:
    """Images as ``{"bytes", "path"}`` and labels. Can be sent to worker processes."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> dict:
        positions, images, _ = self._columns
        return images[index if positions is None else int(positions[index])].as_py()

    def label(self, index: int) -> int:
        positions, _, labels = self._columns
        return labels[index if positions is None else int(positions[index])].as_py()

    @functools.cached_property
    def _columns(self) -> tuple[np.ndarray | None, pa.ChunkedArray, pa.ChunkedArray]:
        """Positions of the rows if a selection was made (N,), and the columns of the table underneath."""
        return row_positions(self.dataset), self.dataset.data.column("image"), self.dataset.data.column("label")

    def __getstate__(self) -> dict:
        return {"dataset": self.dataset}  # not the columns: a memory-mapped table travels as its path


def row_positions(dataset: Dataset) -> np.ndarray | None:
    """Where the rows of a selection lie in the table underneath (N,); None if the dataset is the whole table."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64, copy=False)
