"""One argument names the images, wherever they lie: ``load_long_tailed(source, ...)``."""

from __future__ import annotations

import difflib
from pathlib import Path

from datasets import DatasetDict

from .digits import IMBALANCE_FACTOR as DIGITS_IMBALANCE_FACTOR
from .digits import load_digits_dataset
from .image_folder import load_image_folder
from .long_tail import dataset_labels, long_tailed_indices
from .parquet_folder import find_parquet, load_parquet_folder

NAMES = ("digits",)


def load_long_tailed(
    source: str | Path,
    *,
    imbalance_factor: float | None = None,
    imbalance_profile: str = "exp",
    seed: int = 0,
    data_dir: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DatasetDict:
    """A DatasetDict with columns "image" (encoded, not decoded) and "label" (ClassLabel), train split long-tailed.

    Args:
        source: "digits", a folder of images (``train/CLASS/*.jpg`` or ``CLASS/*.jpg``) or a folder of Parquet files.
        imbalance_factor: cut a long tail into the training split (`long_tailed_indices`); None keeps the data as they
            are, except for digits, whose default is 50.
        imbalance_profile: "exp" or "step".
        seed: which images the tail keeps.
        data_dir: where the files of a named source lie.
        image_column, label_column: columns of a Parquet folder, if their types do not tell.
    """
    if str(source) == "digits":
        splits = load_digits_dataset()
        imbalance_factor = DIGITS_IMBALANCE_FACTOR if imbalance_factor is None else imbalance_factor
    else:
        splits = load_folder(_existing_folder(source), image_column, label_column)
    if imbalance_factor is not None:
        train = splits["train"]
        splits["train"] = train.select(
            long_tailed_indices(dataset_labels(train), imbalance_factor, imbalance_profile, seed)
        )
    return splits


def load_folder(folder: Path, image_column: str | None = None, label_column: str | None = None) -> DatasetDict:
    """A local folder of Parquet files or of images."""
    if parquet := find_parquet(folder):
        return load_parquet_folder(parquet, image_column, label_column)
    return load_image_folder(folder)


def _existing_folder(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"--dataset {source}: is a file; give the folder that holds the images")
    nearest = difflib.get_close_matches(str(source), NAMES, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"give an existing folder or one of: {', '.join(NAMES)}"
    raise ValueError(f"--dataset {source}: neither an existing folder nor a known name; {hint}")
