"""predictions.parquet: the prediction of each image, from which runs are compared on the same images.

Columns, in the order of the split: ``image`` (file name without its folders, null for images stored in a table),
``label`` and ``prediction`` (class names), ``confidence`` and ``true_probability`` (0 to 1, of the prediction and of
the true class).

Legend: N images, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..data.table import row_positions
from ..files import PREDICTIONS_FILE, write_bytes


def write_predictions(
    folder: str | Path, predicted: Mapping[str, np.ndarray], split: Dataset, names: Sequence[str]
) -> None:
    """Write the file into a folder, which is created if needed, atomically.

    Args:
        predicted: from `predict_split`.
        split: the N images, as loaded by `livt_hf.data`.
        names: the C class names of the model, in label order.
    """
    table = pa.table(
        {
            "image": _file_names(split),
            **{
                column: pa.DictionaryArray.from_arrays(pa.array(predicted[key].astype(np.int32)), pa.array(names))
                for column, key in (("label", "labels"), ("prediction", "predictions"))
            },
            "confidence": predicted["confidences"],
            "true_probability": predicted["true_probabilities"],
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_bytes(Path(folder) / PREDICTIONS_FILE, buffer.getvalue().to_pybytes())


def _file_names(split: Dataset) -> pa.Array:
    """The names of the image files, without folders; null where an image has none."""
    paths = pc.struct_field(split.data.column("image"), "path")
    positions = row_positions(split)
    paths = paths if positions is None else paths.take(pa.array(positions))
    return pa.array([path and re.split(r"[\\/]", path)[-1] for path in paths.to_pylist()], pa.string())


def read_predictions(folder: str | Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """``image`` (N,) str or None, ``labels`` and ``predictions`` (N,) int64, ``confidences`` (N,) of the file.

    Args:
        names: the C class names, of which labels are the indices.

    Returns:
        None if there is no such file, as in the folders of earlier versions, or if it is damaged or of other classes.
    """
    label_of = {name: label for label, name in enumerate(names)}
    try:
        table = pq.read_table(Path(folder) / PREDICTIONS_FILE)
        labels, predictions = (
            np.array([label_of[name] for name in table.column(column).to_pylist()], dtype=np.int64)
            for column in ("label", "prediction")
        )
        image, confidences = np.array(table.column("image").to_pylist()), table.column("confidence").to_numpy()
    except (OSError, pa.ArrowException, KeyError):
        return None
    return {"image": image, "labels": labels, "predictions": predictions, "confidences": confidences}
