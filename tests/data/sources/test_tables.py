"""Tables as programs and people write them: delimiters, encodings, headings, ways to write a path."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.images import png
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.sources.tables import read_table

CSV = "path,label\na/1.jpg,cat\na/2.jpg,dog\nb c/3.jpg,dog\n"
COUNTS = {"cat": 1, "dog": 2}


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b c/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    return tmp_path


def counts_of(root, text, name="labels.csv", encoding="utf-8", **options):
    file = root / name
    file.write_bytes(text.encode(encoding))
    return class_counts(load_long_tailed(file, **options))


@pytest.mark.parametrize("name", ["labels.csv", "labels.CSV", "labels.tsv", "labels.txt"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " , "])
def test_delimiters(root, delimiter, name):
    assert counts_of(root, CSV.replace(",", delimiter), name) == COUNTS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_encodings(root, encoding):
    assert counts_of(root, CSV.replace("cat", "Kätzchen"), encoding=encoding) == {"Kätzchen": 1, "dog": 2}


@pytest.mark.parametrize(
    "heading",
    ["Image Path,Label", "FILENAME,Class", "image_id,category", "img,Target", "file_name,species", "thing,kind", ""],
)
def test_headings_in_any_case_or_none(root, heading):
    assert counts_of(root, CSV.replace("path,label\n", heading and f"{heading}\n")) == COUNTS


def test_paths_as_windows_writes_them_and_others(root):
    assert counts_of(root, CSV.replace("/", "\\")) == COUNTS
    assert counts_of(root, CSV.replace("\na/", "\n./a/")) == COUNTS
    absolute = "".join(f"{root}/{line}\n" for line in CSV.splitlines()[1:])
    assert counts_of(root, absolute) == COUNTS
    assert counts_of(root, CSV.replace("\n", "\r\n")) == COUNTS
    assert counts_of(root, CSV.replace("\n", "\n\n")) == COUNTS


def test_quotes_and_delimiters_in_cells(root):
    quoted = 'path;label\n"a/1.jpg";"cat; wild"\n"a/2.jpg";dog, tame\n"b c/3.jpg";"dog, tame"\n'
    assert counts_of(root, quoted) == {"cat; wild": 1, "dog, tame": 2}
    (root / "d,e.jpg").write_bytes(png())
    assert counts_of(root, "d,e.jpg;x,y\na/1.jpg;z\n") == {"x,y": 1, "z": 1}


def test_ids_are_looked_up(root):
    ids = "id,breed\n1,cat\n2,dog\n3,dog\n"
    assert counts_of(root, ids) == COUNTS
    assert load_long_tailed(root / "labels.csv")["train"][2]["image"]["path"] == str(root / "b c" / "3.jpg")
    (root / "elsewhere").mkdir()
    assert counts_of(root / "elsewhere", ids, data_dir=root) == COUNTS
    assert counts_of(root, "1 0\n2 1\n3 1\n", "list.txt") == {"0": 1, "1": 2}
    assert counts_of(root, "1.jpg,cat\n2.jpg,dog\n3.jpg,dog\n") == COUNTS  # file names without their folder
    (root / "d").mkdir()
    (root / "d" / "2.png").write_bytes(png())
    with pytest.raises(
        ValueError, match=r"labels.csv: '2' is the id of 2 images below .*: a/2.jpg, d/2.png; write their"
    ):
        counts_of(root, ids)


def test_ids_without_an_image_are_counted(root, caplog):
    assert counts_of(root, "id,label\n1,cat\n2,dog\n7,cat\n") == {"cat": 1, "dog": 1}
    assert f"{root}/labels.csv: 1 row without an image below {root}, left out: 7" in caplog.messages
    with pytest.raises(ValueError, match=r"none of its images is under .*, for example .*/8; correct --data_dir"):
        counts_of(root, "id,label\n8,cat\n9,dog\n")


def test_decomposed_file_names_of_a_mac_are_found(root):
    (root / "e\u0301.jpg").write_bytes(png())
    assert counts_of(root, "path,label\n\u00e9.jpg,cat\n") == {"cat": 1}


@pytest.mark.parametrize("missing", ["", '""', "nan", " "])
def test_rows_without_a_label_are_counted(root, caplog, missing):
    assert counts_of(root, CSV.replace("a/2.jpg,dog", f"a/2.jpg,{missing}")) == {"cat": 1, "dog": 1}
    assert f"{root}/labels.csv: 1 row without an image or a label, left out: a/2.jpg" in caplog.messages
    assert counts_of(root, CSV.replace("a/2.jpg,dog", "a/2.jpg")) == {"cat": 1, "dog": 1}
    with pytest.raises(ValueError, match="none of its rows has a label; name the column with --label_column"):
        counts_of(root, CSV.replace("cat", "").replace("dog", ""))


def test_numbers_beside_missing_ones_are_whole(root):
    text = "path,label\na/1.jpg,10.0\na/2.jpg,2.0\nb c/3.jpg,\n"
    assert list(counts_of(root, text).items()) == [("2", 1), ("10", 1)]
    assert list(counts_of(root, text.replace("10.0", "-3"))) == ["-3", "2"]


def test_columns_are_chosen_by_their_names(root):
    text = ",id,name,file,weight,size\n0,7,cat,a/1.jpg,1,S\n1,8,dog,a/2.jpg,2,M\n2,9,dog,b c/3.jpg,2,M\n"
    with pytest.raises(ValueError, match=r"^label_column: cannot be inferred for .*; name one of column 1, id, name"):
        counts_of(root, text)
    assert counts_of(root, text, label_column="name") == COUNTS
    assert counts_of(root, text, label_column="size") == {"M": 2, "S": 1}
    with pytest.raises(
        ValueError, match=r"^image_column: .* has no column 'path'; name one of column 1, id, name, file"
    ):
        counts_of(root, text, image_column="path", label_column="name")
    assert counts_of(root, "cat,a/1.jpg\ndog,a/2.jpg\ndog,b c/3.jpg\n") == COUNTS  # without headings


def test_a_column_gives_the_split(root):
    (root / "labels.csv").write_text("path,label,Split\na/1.jpg,cat,train\na/2.jpg,dog,Training\nb c/3.jpg,dog,VAL\n")
    splits = load_long_tailed(root / "labels.csv")
    assert {split: class_counts(rows) for split, rows in splits.items()} == {
        "train": {"cat": 1, "dog": 1},
        "validation": {"cat": 0, "dog": 1},
    }
    (root / "labels.csv").write_text("path,label,split\na/1.jpg,cat,test\na/2.jpg,dog,test\n")
    with pytest.raises(ValueError, match="no row of its test is of a training split; add one"):
        load_long_tailed(root / "labels.csv")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_json_lines_and_parquet_are_lists_too(root, kind):
    rows = [{"path": "a/1.jpg", "label": 3}, {"path": "a/2.jpg", "label": 11}]
    file = root / f"list.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    assert list(class_counts(load_long_tailed(root, train_list=file)).items()) == [("3", 1), ("11", 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b"", "labels.csv: the list is empty"),
        ("labels.csv", b"path,label\n", "labels.csv: the list is empty"),
        (
            "labels.csv",
            b"a/1.jpg\na/2.jpg\n",
            "labels.csv: line 1 is 'a/1.jpg', not 'path,label'; separate the columns by",
        ),
        ("labels.csv", b"a/1.jpg,cat\na/2.jpg,dog,wild\n", "row 2 is 'a/2.jpg,dog,wild', more than 2 columns; quote"),
        ("labels.csv", b'a/1.jpg,"cat\na/2.jpg,dog\n', "line 2 ends a cell of several lines; close its quotes"),
        ("labels.csv", b"a/1.jpg,\0\0\xff", "labels.csv: not a readable text file"),
        ("labels.xlsx", b"PK", "labels.xlsx: a spreadsheet; save it as CSV and name that file"),
        ("labels.jsonl", b"{", "labels.jsonl: cannot be read"),
        (
            "labels.jsonl",
            b'{"path": "a/1.jpg", "label": ["x", "y"]}',
            "'label' of .*labels.jsonl contains lists; several",
        ),
    ],
)
def test_bad_tables_are_named(root, name, content, message):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_long_tailed(root, train_list=root / name)
    assert "\n" not in str(caught.value)


def test_a_row_with_too_many_cells_is_named(root):
    lines = ["path,label", *["a/1.jpg,cat"] * 30, "a/2.jpg,dog,wild"]
    (root / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"row 32 is 'a/2.jpg,dog,wild', more than 2 columns; quote cells that contain ','"
    ):
        read_table(root / "labels.csv")


def test_a_value_of_the_split_column_that_is_no_split_is_named(tmp_path, caplog):
    """Otherwise its rows, and with them the test images, would be training images."""
    caplog.set_level("INFO", "livt_hf")
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(png())
    rows = ["path,label,split", "a.png,cat,train", "b.png,dog,train", "c.png,cat,test"]
    for value, named in (("holdout", "holdout"), ("", r"\(empty\)")):
        (tmp_path / "photos.csv").write_text("\n".join([*rows, f"d.png,dog,{value}"]))
        with pytest.raises(ValueError, match=f"1 row of its column 'split' names no split .*{named}.*; write train"):
            load_long_tailed(tmp_path / "photos.csv")
    (tmp_path / "folds.csv").write_text("path,label,set\na.png,cat,A\nb.png,dog,B\n")
    assert class_counts(load_long_tailed(tmp_path / "folds.csv")) == {"cat": 1, "dog": 1}
    assert "its column 'set' names no splits (A, B) and is not used" in caplog.text


def test_lines_that_end_with_a_carriage_return(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "mac.csv").write_bytes(b"path,label\ra.png,cat\rb.png,dog\r")
    assert class_counts(load_long_tailed(tmp_path / "mac.csv")) == {"cat": 1, "dog": 1}


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.xlsx").write_bytes(b"PK")
    for name in ("data/x.xlsx", "x.xlsx"):
        with pytest.raises(ValueError, match="is a spreadsheet; save it as CSV"):
            load_long_tailed(name)


def test_images_that_are_listed_twice(tmp_path, caplog):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "twice.csv").write_text("path,label\na.png,cat\nb.png,dog\na.png,cat\n")
    assert class_counts(load_long_tailed(tmp_path / "twice.csv")) == {"cat": 2, "dog": 1}
    (message,) = caplog.messages
    assert "1 row for an image that is listed before" in message
    (tmp_path / "two.csv").write_text("path,label\na.png,cat\nb.png,dog\na.png,dog\n")
    with pytest.raises(ValueError, match=r"1 image with several labels, .*: a.png \(cat, dog\); keep one row"):
        load_long_tailed(tmp_path / "two.csv")
