"""Columns that are taken without being named, and those that could have been."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from helpers.images import ROWS, write_parquet
from livt_hf.data import class_counts, load_long_tailed

FEATURES = {
    "image": Image(),
    "label": ClassLabel(names=["a", "b"]),
    "fine_label": ClassLabel(names=["x", "y", "z"]),
    "genus": Value("string"),
    "group": Value("int64"),
    "width": Value("int64"),
    "caption": Value("string"),
    "boxes": [Value("int64")],
}
COLUMNS = {
    "image": ROWS * 4,
    "label": [0, 1] * 6,
    "fine_label": [0, 1, 2] * 4,
    "genus": ["p", "q"] * 6,
    "group": [1, 2, 3] * 4,
    "width": [1, 2, 3] * 4,
    "caption": [f"text {number}" for number in range(12)],
    "boxes": [[1]] * 12,
}
SAID = (
    "labels are taken from 'label' (2 classes); --label_column fine_label (3 classes), --label_column genus "
    "(2 classes), --label_column group (3 classes) are there, too"
)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_other_label_columns_are_named(tmp_path, caplog, kind):
    if kind == "parquet":
        write_parquet(tmp_path / "train-0.parquet", COLUMNS, FEATURES)
    else:
        DatasetDict({"train": Dataset.from_dict(COLUMNS, Features(FEATURES))}).save_to_disk(tmp_path)
    load_long_tailed(tmp_path)
    assert caplog.messages == [SAID]
    caplog.clear()
    load_long_tailed(tmp_path, label_column="fine_label")
    assert caplog.messages == []


def test_other_label_columns_of_a_table_are_named(tmp_path, caplog):
    for number in range(6):
        (tmp_path / f"{number}.jpg").touch()
    lines = [f"{n}.jpg,{'ab'[n % 2]},{'xyz'[n % 3]},{n % 2},note {n}" for n in range(6)]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["path,label,species,size,note", *lines]))
    load_long_tailed(file)
    assert caplog.messages == [
        "labels are taken from 'label' (2 classes); --label_column species (3 classes) is there, too"
    ]


def test_columns_without_types_are_found_by_their_usual_names(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"img": [row["bytes"] for row in ROWS], "Category": ["b", "a", "b"]})
    assert class_counts(load_long_tailed(tmp_path)) == {"a": 1, "b": 2}
