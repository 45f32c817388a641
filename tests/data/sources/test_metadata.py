"""Image folders with metadata files, as the Hub's `imagefolder` reads them."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.images import png
from livt_hf.data import class_counts, load_long_tailed


def write_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())


def write_metadata(folder, kind, rows):
    """``rows`` are dicts with the same keys."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"metadata.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)


def labeled(names, column="label"):
    return [{"file_name": name, column: ("dog", "cat")[number % 2]} for number, name in enumerate(names)]


def counts_of(folder, **options):
    return {split: class_counts(rows) for split, rows in load_long_tailed(folder, **options).items()}


NAMES = [f"im{index}.jpg" for index in range(8)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_file_per_split(tmp_path, kind):
    for split in ("train", "test"):
        write_images(tmp_path / split, *NAMES)
        write_metadata(tmp_path / split, kind, labeled(NAMES))
    assert counts_of(tmp_path) == {split: {"cat": 4, "dog": 4} for split in ("train", "test")}
    first = load_long_tailed(tmp_path)["test"][0]
    assert first == {"image": {"bytes": None, "path": str(tmp_path / "test" / "im0.jpg")}, "label": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_one_metadata_file_for_all_splits(tmp_path, kind):
    names = ["train/im0.jpg", "train/deep/im1.jpg", "val/im2.jpg"]
    write_images(tmp_path, *names)
    write_metadata(tmp_path, kind, labeled(names))
    assert counts_of(tmp_path) == {"train": {"cat": 1, "dog": 1}, "validation": {"cat": 0, "dog": 1}}


def test_without_splits_all_is_training_data(tmp_path):
    write_images(tmp_path, *NAMES)
    write_metadata(tmp_path, "csv", labeled(NAMES))
    assert counts_of(tmp_path) == {"train": {"cat": 4, "dog": 4}}
    rows = [{"file_name": f"{name}/1.jpg", "label": name} for name in ("bus", "train", "tram")]
    write_images(tmp_path / "vehicles", *(row["file_name"] for row in rows))
    write_metadata(tmp_path / "vehicles", "csv", rows)
    assert counts_of(tmp_path / "vehicles") == {"train": {"bus": 1, "train": 1, "tram": 1}}


def test_a_column_gives_the_split(tmp_path):
    write_images(tmp_path, *NAMES)
    rows = [{**row, "split": "train" if number < 6 else "Test"} for number, row in enumerate(labeled(NAMES))]
    write_metadata(tmp_path, "jsonl", rows)
    assert counts_of(tmp_path) == {"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}}


def test_columns_of_other_names(tmp_path):
    write_images(tmp_path / "train", *NAMES)
    write_metadata(tmp_path / "train", "csv", labeled(NAMES, "animal"))
    with pytest.raises(
        ValueError, match=r"^label_column: cannot be inferred for .*metadata.csv; name one of file_name, a"
    ):
        load_long_tailed(tmp_path)
    assert counts_of(tmp_path, label_column="animal") == {"train": {"cat": 4, "dog": 4}}
    with pytest.raises(ValueError, match=r"^label_column: .* has no column 'kind'; name one of file_name, animal"):
        load_long_tailed(tmp_path, label_column="kind")
    write_metadata(
        tmp_path / "train", "csv", [{"photo_file_name": name, "label": index % 3} for index, name in enumerate(NAMES)]
    )
    assert counts_of(tmp_path) == {"train": {"0": 3, "1": 3, "2": 2}}
    write_metadata(tmp_path / "train", "csv", [{"name": name, "label": 1} for name in NAMES])
    with pytest.raises(ValueError, match="has no column file_name, but name, label; rename the one"):
        load_long_tailed(tmp_path)


def test_metadata_without_labels_leave_the_class_folders(tmp_path):
    names = ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]
    write_images(tmp_path / "train", *names)
    write_metadata(tmp_path / "train", "jsonl", [{"file_name": name, "text": "a pet"} for name in names])
    assert counts_of(tmp_path) == {"train": {"cat": 1, "dog": 2}}


def test_files_and_entries_without_each_other_are_counted(tmp_path, caplog):
    write_images(tmp_path / "train", "im0.jpg", "im1.jpg", "extra.jpg")
    write_metadata(tmp_path / "train", "csv", labeled(["im0.jpg", "im1.jpg", "gone.jpg"]))
    write_images(tmp_path / "test", "im0.jpg")
    write_metadata(tmp_path / "test", "csv", labeled(["im0.jpg"]))
    assert counts_of(tmp_path) == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 0, "dog": 1}}
    assert caplog.messages == [
        f"{tmp_path}/train/metadata.csv: 1 row without an image file, left out: train/gone.jpg",
        f"{tmp_path}: 1 image without an entry in the metadata, left out: train/extra.jpg",
    ]
    write_metadata(tmp_path / "train", "csv", labeled(["a.jpg", "b.jpg"]))
    with pytest.raises(ValueError, match=r"train/metadata.csv: none of its images is in .* for example train/a.jpg"):
        load_long_tailed(tmp_path)
    write_metadata(tmp_path / "train", "jsonl", labeled(["im0.jpg"]))
    with pytest.raises(ValueError, match=r"/train: has metadata.csv and metadata.jsonl; keep one of them"):
        load_long_tailed(tmp_path)


def test_a_split_may_have_class_folders_instead(tmp_path):
    write_images(tmp_path / "train", *NAMES)
    write_metadata(tmp_path / "train", "parquet", labeled(NAMES))
    write_images(tmp_path / "test", "cat/1.jpg")
    assert counts_of(tmp_path)["test"] == {"cat": 1, "dog": 0}


def test_entries_outside_the_splits_are_counted(tmp_path, caplog):
    names = ["train/1.jpg", "train/2.jpg", "test/3.jpg", "spare/4.jpg"]
    write_images(tmp_path, *names)
    write_metadata(tmp_path, "csv", labeled(names))
    assert counts_of(tmp_path) == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 0, "dog": 1}}
    assert f"{tmp_path}/metadata.csv: 1 row in no split, left out: spare" in caplog.messages
