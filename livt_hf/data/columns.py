"""Which columns of a source are the images and the labels, and which other columns could be labels."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image, Value

# As `plain` gives them, the usual ones first: where several are there, the first one is taken.
IMAGE_HEADINGS = (
    *("image", "path", "filename", "file", "imagepath", "filepath", "img", "imgpath", "imagefile", "imagefilename"),
    *("imagename", "imgname", "images", "paths", "files", "filenames", "photo", "picture", "imageid", "imgid", "id"),
)
LABEL_HEADINGS = (
    *("label", "class", "target", "category", "labels", "classname", "labelname", "categoryname", "targetname", "y"),
    *("species", "breed", "diagnosis", "classid", "labelid", "categoryid", "targetid"),
)
SPLIT_HEADINGS = ("split", "set", "subset", "partition")
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "jpeg", "png")  # of encoded images without that type
MAX_BYTES_SCANNED = 2**24  # of a column that might hold other labels
_MEASURES = re.compile(r"(?:.*[_ ])?(?:id|idx|index|width|height|size|year|month|day|x|y|w|h)", re.IGNORECASE)

logger = logging.getLogger(__name__)


def choose_columns(
    features: Features, image_column: str | None, label_column: str | None, where: object
) -> tuple[str, str]:
    """Names of the image and the label column: as given, else the only one of its type, else by its usual name."""
    return (
        _choose(image_column, "image_column", features, Image, IMAGE_COLUMNS, where),
        choose_label_column(features, label_column, where),
    )


def choose_label_column(features: Features, label_column: str | None, where: object) -> str:
    """As `choose_columns`, for the labels alone."""
    return _choose(label_column, "label_column", features, ClassLabel, LABEL_HEADINGS, where)


def _choose(
    column: str | None, option: str, features: Features, kind: type, usual: Sequence[str], where: object
) -> str:
    if column is not None:
        return named_column(column, list(features), option, where)
    candidates = [name for name, feature in features.items() if isinstance(feature, kind)]
    default = option.removesuffix("_column")
    if len(candidates) == 1:
        return candidates[0]
    if default in features:
        return default
    if not candidates and (by_name := usual_column(list(features), usual)):
        return by_name
    raise not_inferred(candidates or list(features), option, where)


def named_column(column: str, columns: Sequence[str], option: str, where: object) -> str:
    """``column``; ValueError that names the columns if there is no such column."""
    if column not in columns:
        raise ValueError(f"{option}: {where} has no column {column!r}; name one of {', '.join(columns)}")
    return column


def not_inferred(columns: Sequence[str], option: str, where: object) -> ValueError:
    """The error for a column that has to be named."""
    return ValueError(f"{option}: cannot be inferred for {where}; name one of {', '.join(columns)}")


def usual_column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column whose heading comes first in ``usual``, if one does."""
    return next((column for heading in usual for column in columns if plain(column) == heading), None)


def plain(heading: str) -> str:
    """A heading without case, spaces and punctuation: "Image Path" and "image_path" are the same."""
    return re.sub(r"[\W_]", "", heading.lower())


def other_labels(
    features: Mapping[str, object], label_column: str, num_rows: int, read: Callable[[str], pa.ChunkedArray | None]
) -> dict[str, int]:
    """Other columns that could be the labels, with their numbers of classes: class labels, and few different values.

    Args:
        read: gives a column of strings or integers, or None if it is too large to be read for this.
    """
    found = {}
    for name, feature in features.items():
        if name == label_column:
            continue
        if isinstance(feature, ClassLabel):
            found[name] = len(feature.names)
        elif isinstance(feature, Value) and _may_be_labels(name, feature) and (column := read(name)) is not None:
            classes = pc.count_distinct(column).as_py()
            if 2 <= classes <= num_rows / 2:
                found[name] = classes
    return found


def _may_be_labels(name: str, feature: Value) -> bool:
    if plain(name) in SPLIT_HEADINGS or _MEASURES.fullmatch(name):
        return False
    return feature.dtype in ("string", "large_string") or "int" in feature.dtype


def log_label_choice(label_column: str, num_classes: int, others: Mapping[str, int]) -> None:
    """Say which column is used where the user did not choose and could have."""
    if others:
        named = ", ".join(f"--label_column {name} ({classes:,} classes)" for name, classes in list(others.items())[:5])
        verb = "is" if len(others) == 1 else "are"
        logger.info(f"labels are taken from {label_column!r} ({num_classes:,} classes); {named} {verb} there, too")
