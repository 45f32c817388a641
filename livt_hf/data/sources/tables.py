"""Tables of image files and labels: text with any common delimiter, encoding and heading, JSON lines, Parquet.

A table becomes strings: paths with "/" (Windows writes "\\"), labels, and the split of each row where a column tells.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Value

from ...class_names import abbreviate
from ...reporting.blocks import counted
from ..columns import (
    IMAGE_HEADINGS,
    LABEL_HEADINGS,
    SPLIT_HEADINGS,
    log_label_choice,
    named_column,
    not_inferred,
    other_labels,
    plain,
    usual_column,
)
from ..labels import check_single_labels, plain_labels
from ..table import split_of
from .walk import is_image

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
SPREADSHEETS = (".xls", ".xlsx", ".ods")
DELIMITERS = ",;\t|"
MISSING = ("", "nan")  # labels, as pandas writes them
SAMPLE_LINES = 20

logger = logging.getLogger(__name__)


@dataclass
class Entries:
    """The labeled rows of a table.

    Attributes:
        file: the table, for messages.
        paths: of the images, as written but with "/".
        labels: as strings.
        splits: the split of each row; empty if no column tells it.
    """

    file: Path
    paths: list[str]
    labels: list[str]
    splits: list[str]

    def select(self, rows: list[int]) -> Entries:
        """Some of the rows."""
        splits = [self.splits[row] for row in rows] if self.splits else []
        return Entries(self.file, [self.paths[row] for row in rows], [self.labels[row] for row in rows], splits)


def read_table(
    file: Path, image_column: str | None = None, label_column: str | None = None, file_name: bool = False
) -> Entries | None:
    """The rows of a table that have a label; the others are counted, named in a warning and left out.

    Args:
        image_column, label_column: headings; None looks for the usual ones.
        file_name: the table is a metadata file: images are in the column file_name or one that ends with it. None is
            returned if it has no label column.

    Raises:
        ValueError: a table that cannot be read, or whose columns cannot be told.
    """
    table = _read(file, [name for name in (image_column, label_column) if name])
    headings = table.column_names
    image = _file_name_column(headings, image_column, file) if file_name else _image_column(table, image_column, file)
    label = _label_column(table, image, label_column, file, by_heading=file_name)
    if label is None and file_name:
        return None
    if label is None:
        raise no_labels(file)
    paths = ["" if path is None else str(path).strip() for path in table.column(image).to_pylist()]
    labels = _as_strings(table.column(label), label, file)
    splits = _splits(table, file)
    entries = Entries(file, [_with_slashes(path) for path in paths], labels, splits)
    kept = [row for row, (path, text) in enumerate(zip(paths, labels, strict=True)) if path and text not in MISSING]
    if len(kept) < len(paths):
        left_out = [paths[row] or f"row {row + 1}" for row in sorted(set(range(len(paths))) - set(kept))]
        logger.warning(
            f"{file}: {counted(len(left_out), 'row')} without an image or a label, left out: {abbreviate(left_out, 5)}"
        )
    if label_column is None:
        _name_other_labels(table, image, label)
    labeled = entries.select(kept)
    _check_repeated(labeled)
    return labeled


def _check_repeated(entries: Entries) -> None:
    """Warn of images that are listed more than once.

    Raises:
        ValueError: with different labels.
    """
    if len(set(entries.paths)) == len(entries.paths):
        return
    labels_of: dict[str, dict[str, None]] = {}
    for path, label in zip(entries.paths, entries.labels, strict=True):
        labels_of.setdefault(path, {})[label] = None
    if several := [f"{path} ({', '.join(labels)})" for path, labels in labels_of.items() if len(labels) > 1]:
        raise ValueError(
            f"{entries.file}: {counted(len(several), 'image')} with several labels, which are not supported: "
            f"{abbreviate(several, 3)}; keep one row for each image"
        )
    repeated = counted(len(entries.paths) - len(labels_of), "row")
    logger.warning(f"{entries.file}: {repeated} for an image that is listed before; duplicates count as images")


def no_labels(file: Path) -> ValueError:
    """The error for a table whose label column cannot be told."""
    return not_inferred(_read(file, []).column_names, "label_column", file)


def _read(file: Path, wanted: list[str]) -> pa.Table:
    if not file.is_file():
        raise ValueError(f"{file}: no such list file")
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(file)
        if suffix == ".jsonl":
            return pyarrow.json.read_json(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read ({str(error).splitlines()[0]}); write it again") from error
    return _text_table(file, read_text(file), wanted)


def read_text(file: Path) -> str:
    """A text file in UTF-8, UTF-16 or, if it is neither, Windows' Latin alphabet (cp1252)."""
    if file.suffix.lower() in SPREADSHEETS:
        raise ValueError(f"{file}: a spreadsheet; save it as CSV and name that file")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: not a readable text file ({error.strerror})") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # no mark, but two bytes for a letter
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return _with_newlines(data.decode(encoding))
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig" or b"\0" in data:
            raise ValueError(f"{file}: not a readable text file ({error})") from error
    logger.info(f"{file}: not UTF-8, read as cp1252")
    try:
        return _with_newlines(data.decode("cp1252"))
    except UnicodeDecodeError:
        return _with_newlines(data.decode("latin-1"))


def _with_newlines(text: str) -> str:
    """Lines as Unix ends them; Excel for the Macintosh ends them with a carriage return alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text_table(file: Path, text: str, wanted: list[str]) -> pa.Table:
    """Columns of strings; a table without headings has "column 1", "column 2", ..."""
    delimiter = find_delimiter(text)
    if delimiter is None:
        first = next((line for line in text.splitlines() if line.strip()), None)
        if first is None:
            raise ValueError(f"{file}: the list is empty")
        raise ValueError(f"{file}: line 1 is {first[:80]!r}, not 'path,label'; separate the columns by commas or tabs")
    rows = _rows(file, text, delimiter)
    has_heading = _is_heading(rows, wanted)
    names = _distinct(rows[0]) if has_heading else [f"column {number}" for number in range(1, len(rows[0]) + 1)]
    if len(rows) == has_heading:
        raise ValueError(f"{file}: the list is empty")
    columns = zip(*rows[has_heading:], strict=True)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def _rows(file: Path, text: str, delimiter: str) -> list[list[str]]:
    """The cells of all lines that are not blank; missing ones at the end of a line are empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
            if any("\n" in cell for cell in cells):
                raise ValueError(f"{file}: line {reader.line_num} ends a cell of several lines; close its quotes")
    except csv.Error as error:
        raise ValueError(f"{file}: line {reader.line_num} cannot be read ({error}); quote its cells") from None
    widths = Counter(len(row) for row in rows[:SAMPLE_LINES])
    width = max(sorted(widths), key=lambda width: (width > 1, widths[width]))  # of equally many rows, the smaller one
    for number, row in enumerate(rows, start=1):
        if len(row) > width and any(row[width:]):
            raise ValueError(
                f"{file}: row {number} is {delimiter.join(row)[:80]!r}, more than {width} columns; quote cells that "
                f"contain {delimiter!r}"
            )
    return [(row + [""] * width)[:width] for row in rows]


def find_delimiter(text: str) -> str | None:
    """The delimiter with which most of the first lines have an image file, then as many columns as the others, most of
    them; None if there is none."""
    lines = list(itertools.islice((line for line in io.StringIO(text) if line.strip()), SAMPLE_LINES))
    scores = {}
    for delimiter in DELIMITERS:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        widths = Counter(len(row) for row in rows)
        if widths and max(widths) > 1:
            with_image = sum(any(is_image(cell.strip()) for cell in row) for row in rows)
            scores[delimiter] = (with_image, max(widths.values()), max(widths))
    return max(scores, key=lambda delimiter: scores[delimiter], default=None)


def _is_heading(rows: list[list[str]], wanted: list[str]) -> bool:
    """Whether the first row names the columns: it has a usual or wanted name, or the next ones alone have images."""
    if any(is_image(cell) for cell in rows[0]):
        return False
    usual = {*IMAGE_HEADINGS, *LABEL_HEADINGS}
    named = any(cell in wanted or plain(cell) in usual for cell in rows[0])
    return named or any(is_image(cell) for row in rows[1:SAMPLE_LINES] for cell in row)


def _distinct(names: list[str]) -> list[str]:
    """Headings, of which pandas leaves the first one empty if it writes an index."""
    return [name if name and names.index(name) == place else f"column {place + 1}" for place, name in enumerate(names)]


def _file_name_column(headings: list[str], wanted: str | None, file: Path) -> str:
    if wanted is not None:
        return named_column(wanted, headings, "image_column", file)
    if "file_name" in headings:
        return "file_name"
    found = [heading for heading in headings if heading.endswith("_file_name")]
    if len(found) == 1 or "image_file_name" in found:
        return "image_file_name" if "image_file_name" in found else found[0]
    if found:
        raise not_inferred(found, "image_column", file)
    raise ValueError(f"{file}: has no column file_name, but {abbreviate(headings)}; rename the one with the file names")


def _image_column(table: pa.Table, wanted: str | None, file: Path) -> str:
    headings = table.column_names
    if wanted is not None:
        return named_column(wanted, headings, "image_column", file)
    by_content = [name for name in headings if is_image(_first_value(table, name).strip())]
    return usual_column(by_content, IMAGE_HEADINGS) or next(
        iter(by_content), usual_column(headings, IMAGE_HEADINGS) or headings[0]
    )


def _first_value(table: pa.Table, name: str) -> str:
    return next((str(value) for value in table.column(name).slice(0, SAMPLE_LINES).to_pylist() if value), "")


def _label_column(table: pa.Table, image: str, wanted: str | None, file: Path, by_heading: bool) -> str | None:
    headings = table.column_names
    if wanted is not None:
        return named_column(wanted, headings, "label_column", file)
    others = [heading for heading in headings if heading != image]
    if usual := usual_column(others, LABEL_HEADINGS):
        return usual
    if by_heading:
        return None
    if len(others) == 1 and _first_value(table, others[0]):
        return others[0]
    after = headings.index(image) + 1
    has_headings = not re.fullmatch(r"column \d+", image)
    return None if has_headings or not others else headings[after] if after < len(headings) else headings[after - 2]


def _as_strings(labels: pa.ChunkedArray, column: str, file: Path) -> list[str]:
    check_single_labels(labels.type, column, file)
    if pa.types.is_null(labels.type):
        return [""] * len(labels)
    texts = plain_labels(labels, column, file).cast(pa.string()).to_pylist()
    return ["" if text is None else "" if text.strip().lower() in MISSING else text.strip() for text in texts]


def _with_slashes(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _splits(table: pa.Table, file: Path) -> list[str]:
    """The split of each row if a column tells it.

    Raises:
        ValueError: the column names splits, but also something else, whose rows would be of no split.
    """
    column = usual_column(table.column_names, SPLIT_HEADINGS)
    if column is None or not pa.types.is_string(table.column(column).type):
        return []
    named = [(name or "").strip() for name in table.column(column).to_pylist()]
    found = [split_of(name) for name in named]
    others = sorted({name or "(empty)" for name, split in zip(named, found, strict=True) if split is None})
    if others and any(found):
        rows = counted(sum(split is None for split in found), "row")
        raise ValueError(
            f"{file}: {rows} of its column {column!r} {'name' if rows[:2] != '1 ' else 'names'} no split "
            f"({abbreviate(others, 5)}); write train, validation or test there, or remove the rows"
        )
    if others:
        logger.info(f"{file}: its column {column!r} names no splits ({abbreviate(others, 5)}) and is not used")
    return [split for split in found if split]


def _name_other_labels(table: pa.Table, image: str, label: str) -> None:
    features = {
        name: Value("string" if pa.types.is_string(kind) else "int64" if pa.types.is_integer(kind) else "float64")
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name != image and name != label and not pa.types.is_nested(kind)
    }
    numbers = {name for name in features if re.fullmatch(r"-?[\d.]*", _first_value(table, name))}  # in a CSV
    texts = {name: feature for name, feature in features.items() if name not in numbers}
    others = other_labels(texts, label, table.num_rows, table.column)
    log_label_choice(label, len(table.column(label).unique()), others)
