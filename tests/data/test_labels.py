"""Columns and labels of any kind become the two columns "image" and "label"; errors name the column or row."""

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from helpers.images import ROWS, png, write_parquet
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.data.table import left_out


def test_parquet_columns_without_metadata_are_named_by_the_user(tmp_path):
    columns = {"picture": [image["bytes"] for image in ROWS], "kind": ["b", "a", "b"], "number": [0, 2, 1]}
    write_parquet(tmp_path / "train.parquet", columns)
    with pytest.raises(ValueError, match="^image_column: cannot be inferred for .*; name one of picture, kind, number"):
        load_long_tailed(tmp_path)
    with pytest.raises(ValueError, match="^label_column: .* has no column 'class'; name one of picture, kind, number"):
        load_long_tailed(tmp_path, image_column="picture", label_column="class")
    by_name = load_long_tailed(tmp_path, image_column="picture", label_column="kind")["train"]
    assert class_counts(by_name) == {"a": 1, "b": 2}
    assert by_name[0] == {"image": {"bytes": png(), "path": None}, "label": 1}
    by_number = load_long_tailed(tmp_path, image_column="picture", label_column="number")
    assert class_counts(by_number) == {"0": 1, "1": 1, "2": 1}
    with pytest.raises(ValueError, match="^image_column: the column contains string, not encoded images"):
        load_long_tailed(tmp_path, image_column="kind", label_column="number")


@pytest.mark.parametrize(
    ("values", "counts"), [([True, False, True], {"false": 1, "true": 2}), ([1.0, 0.5, 1.0], {"0.5": 1, "1": 2})]
)
def test_labels_that_are_neither_integers_nor_strings_are_named_as_arrow_prints_them(tmp_path, values, counts):
    write_parquet(tmp_path / "train.parquet", {"picture": [image["bytes"] for image in ROWS], "kind": values})
    splits = load_long_tailed(tmp_path, image_column="picture", label_column="kind")
    assert class_counts(splits) == counts
    assert splits["train"]["label"][:] == [1, 0, 1]


def test_with_several_label_columns_one_must_be_named(tmp_path):
    features = {"image": Image(), "fine_label": ClassLabel(names=["a", "b"]), "coarse_label": ClassLabel(names=["c"])}
    columns = {"image": ROWS, "fine_label": [0, 1, 1], "coarse_label": [0, 0, 0]}
    write_parquet(tmp_path / "train-0.parquet", columns, features)
    with pytest.raises(ValueError, match="^label_column: cannot be inferred for .*; name one of fine_label, coarse"):
        load_long_tailed(tmp_path)
    assert class_counts(load_long_tailed(tmp_path, label_column="fine_label")) == {"a": 1, "b": 2}


@pytest.mark.parametrize("label", [7, -1, None])
def test_a_label_out_of_range_names_its_row(tmp_path, label):
    features = {"image": Image(), "label": Value("int64")}
    write_parquet(tmp_path / "train-0.parquet", {"image": ROWS, "label": [0, 1, label]}, features)
    table = pq.read_table(tmp_path / "train-0.parquet")
    with_names = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}).arrow_schema.metadata
    pq.write_table(table.replace_schema_metadata(with_names), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=f"label {label} of train row 2 is not one of the 2 classes"):
        load_long_tailed(tmp_path)


def labeled(names, labels):
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": ROWS[: len(labels)], "label": labels}, features=features)


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_a_split_that_numbers_its_classes_differently_is_matched_by_name(tmp_path, layout):
    """As from `imagefolder`: a test set without images of one class numbers the others differently."""

    def save(folder, **splits):
        if layout == "arrow":
            DatasetDict(splits).save_to_disk(folder)
        else:
            for split, rows in splits.items():
                folder.mkdir(exist_ok=True)
                rows.to_parquet(folder / f"{split}-0.parquet")
        return folder

    train = labeled(["cat", "dog", "lynx"], [0, 1, 2])
    splits = load_long_tailed(save(tmp_path / "fewer", train=train, test=labeled(["dog", "lynx"], [0, 1])))
    assert splits["test"].features["label"].names == ["cat", "dog", "lynx"]
    assert splits["test"]["label"] == [1, 2]
    with pytest.raises(ValueError, match="label 'emu' of test row 0 is not one of the 3 classes"):
        load_long_tailed(save(tmp_path / "other", train=train, test=labeled(["dog", "emu"], [1, 1])))
    folder = save(tmp_path / "hidden", train=train, test=labeled(["cat", "dog", "lynx"], [-1, -1]))
    with pytest.warns(UserWarning, match="the test split has no labels and is ignored"):
        assert list(load_long_tailed(folder)) == ["train"]


@pytest.mark.parametrize("kind", ["strings", "class labels", "saved to disk"])
def test_images_of_classes_that_training_lacks_are_left_out_of_other_splits(tmp_path, caplog, kind):
    labels = {"train": ["cat", "dog", "cat"], "test": ["emu", "dog", "emu", "fox", "cat"]}
    for split, words in labels.items():
        rows = Dataset.from_dict({"img": [ROWS[number % len(ROWS)] for number in range(len(words))], "label": words})
        if kind != "strings":
            rows = rows.class_encode_column("label")
        labels[split] = rows.cast_column("img", Image(decode=False))
        labels[split].to_parquet(tmp_path / f"{split}-0.parquet")
    if kind == "saved to disk":
        DatasetDict(labels).save_to_disk(tmp_path / "saved")
    splits = load_long_tailed(tmp_path / "saved" if kind == "saved to disk" else tmp_path)
    names = splits["test"].features["label"].names
    assert [names[label] for label in splits["test"]["label"]] == ["dog", "cat"]
    assert [splits["test"][row]["image"]["bytes"] for row in (0, 1)] == [ROWS[1]["bytes"], ROWS[4 % len(ROWS)]["bytes"]]
    assert left_out(splits["test"]) == {"emu": 2, "fox": 1}
    (message,) = [line for line in caplog.messages if "left out" in line]
    assert "3 images left out, because no training image has their class: emu (2), fox (1)" in message


def saved(tmp_path, **splits):
    for split, labels in splits.items():
        rows = [ROWS[number % len(ROWS)] for number in range(len(labels))]
        write_parquet(tmp_path / f"{split}-0.parquet", {"img": [row["bytes"] for row in rows], "label": labels})
    return {split: class_counts(rows) for split, rows in load_long_tailed(tmp_path).items()}


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ([1, 2, 3, 1], {"1": 2, "2": 1, "3": 1}),
        ([10, 2, 2, 700], {"2": 2, "10": 1, "700": 1}),
        ([5, -7, -1, 5], {"-7": 1, "-1": 1, "5": 2}),
        ([1.0, 10.0, 2.0], {"1": 1, "2": 1, "10": 1}),
        ([10.5, 9.5], {"9.5": 1, "10.5": 1}),
        ([2**40, 3], {"3": 1, str(2**40): 1}),
        (["10", "9"], {"10": 1, "9": 1}),
        ([True, False, True], {"false": 1, "true": 2}),
    ],
)
def test_classes_are_named_by_their_values_in_order(tmp_path, labels, counts):
    found = saved(tmp_path, train=labels)["train"]
    assert list(found.items()) == list(counts.items())
    names = list(counts)
    numbers = load_long_tailed(tmp_path)["train"]["label"]
    assert [names[number] for number in numbers] == [
        f"{label:g}" if isinstance(label, float) else str(label).lower() for label in labels
    ]


def test_integers_of_other_splits_are_matched_by_value(tmp_path):
    found = saved(tmp_path, train=[1, 2, 3, 3], validation=[3, 1], test=[3.0, 2.0])
    assert found["validation"] == {"1": 1, "2": 0, "3": 1}
    assert found["test"] == {"1": 0, "2": 1, "3": 1}
    with pytest.raises(ValueError, match=r"label 0 of test row 1 is not one of the 3 classes \(1, 2, 3; 1 such rows\)"):
        saved(tmp_path, test=[1, 0])
    with pytest.warns(UserWarning, match="the test split has no labels and is ignored"):
        assert list(saved(tmp_path, test=[-1, -1])) == ["train", "validation"]
    with pytest.raises(ValueError, match="label -1 of test row 1 is not one of the 3 classes"):
        saved(tmp_path, test=[1, -1])


def test_integers_of_arrow_folders_are_named_by_their_values(tmp_path):
    features = Features({"image": Image(), "label": Value("int32")})
    rows = Dataset.from_dict({"image": ROWS, "label": [3, 1, 3]}, features=features)
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path)
    splits = load_long_tailed(tmp_path)
    assert {split: class_counts(rows) for split, rows in splits.items()} == {
        "train": {"1": 1, "3": 2},
        "test": {"1": 1, "3": 0},
    }


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], [1], []], "contains lists; several labels per image are not supported, one label per image is: name"),
        ([{"a": 1}, {"a": 2}, None], "contains structs; several labels per image are not supported"),
        ([None, None], "has no labels in the training split; name another one"),
        ([-1, -1], "has no labels in the training split; name another one"),
        ([float("nan")] * 2, "has no labels in the training split; name another one"),
    ],
)
def test_labels_that_are_none_or_several_per_image(tmp_path, labels, message):
    with pytest.raises(ValueError, match=f"^label_column: 'label' of {tmp_path} {message}"):
        saved(tmp_path, train=labels)


def test_categories_of_pandas_are_their_values(tmp_path):
    import pyarrow as pa

    column = pa.array(["b", "a", "b"]).dictionary_encode()
    table = pa.table({"image": pa.array([row["bytes"] for row in ROWS]), "label": column})
    pq.write_table(table, tmp_path / "train.parquet")
    assert class_counts(load_long_tailed(tmp_path)) == {"a": 1, "b": 2}
