"""The long tail keeps exactly the published images; every source gives the same two columns; errors are one line."""

import hashlib
import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from helpers.paths import FIXTURES, SHARED
from livt_hf.data import class_counts, decode_image, load_long_tailed, long_tailed_indices

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


def write_image(path, color=(200, 30, 90), size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).save(path)


def encoded(color=(200, 30, 90)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (6, 5), color).save(buffer, "PNG")
    return buffer.getvalue()


# The long tail


@pytest.mark.parametrize("imbalance_factor", ["100", "10"])
def test_the_exponential_profile_keeps_the_published_images(imbalance_factor):
    published = json.loads((FIXTURES / "data_cifar_lt_selection.json").read_text())
    labels = np.array([int(label) for label in published["labels"]])
    kept = long_tailed_indices(labels, float(imbalance_factor))
    expected = published["selections"][imbalance_factor]
    assert np.bincount(labels[kept]).tolist() == expected["counts"]
    assert hashlib.sha256(",".join(map(str, kept)).encode()).hexdigest() == expected["sha256"]


@needs_shared
def test_the_digest_stands_for_the_reference_indices():
    reference = json.loads((SHARED / "reference/cifar_lt_selection.json").read_text())
    for imbalance_factor, selection in reference["selections"].items():
        kept = long_tailed_indices(reference["labels"], float(imbalance_factor))
        assert kept.tolist() == [index for indices in selection["indices_by_class"] for index in indices]


@pytest.mark.parametrize(
    ("classes", "per_class", "imbalance_factor", "total"),
    [(10, 5000, 100, 12406), (10, 5000, 10, 20431), (100, 500, 100, 10847), (100, 500, 10, 19573)],
)
def test_totals_of_the_published_cifar_sets(classes, per_class, imbalance_factor, total):
    labels = np.arange(classes * per_class) % classes
    assert len(long_tailed_indices(labels, imbalance_factor)) == total


@needs_shared
def test_the_balanced_cifar_set_has_the_images_of_the_tail_equally_many_a_class():
    folder = SHARED / "data/cifar10_jpeg"
    for factor, per_class in ((None, 1240), (10, 2043)):  # of 12,406 and 20,431 images
        splits = load_long_tailed("cifar10-bal", data_dir=folder, imbalance_factor=factor)
        assert set(class_counts(splits).values()) == {per_class}
        assert len(splits["test"]) == 10_000
    tail = load_long_tailed("cifar10-lt", data_dir=folder)["train"]
    balanced = load_long_tailed("cifar10-bal", data_dir=folder)["train"]
    # Of each class both take the first ones of the same shuffled list.
    rarest = tail.filter(lambda label: label == 9, input_columns="label")["image"]
    assert rarest[:] == balanced.filter(lambda label: label == 9, input_columns="label")["image"][: len(rarest)]


def test_the_step_profile_keeps_half_the_classes_whole():
    labels = np.repeat(np.arange(5), 40)
    kept = long_tailed_indices(labels, 10, profile="step")
    assert np.bincount(labels[kept]).tolist() == [40, 40, 4, 4, 4]


def test_a_short_class_keeps_all_its_images_and_the_rule_counts_from_the_largest():
    labels = np.repeat([0, 1, 2], [10, 100, 30])
    assert np.bincount(labels[long_tailed_indices(labels, 100)]).tolist() == [10, 10, 1]
    by_frequency = long_tailed_indices(labels, 100, order="frequency")
    assert np.bincount(labels[by_frequency]).tolist() == [1, 100, 10]


def test_the_seed_chooses_the_images_not_their_number():
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (long_tailed_indices(labels, 10, seed=seed) for seed in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[other]).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance_factor": 0.5}, "^imbalance_factor: 0.5 must be at least 1"),
        ({"imbalance_factor": float("nan")}, "^imbalance_factor: nan must be at least 1"),
        ({"imbalance_factor": 51}, "^imbalance_factor: 51 leaves the smallest class without images; use at most 50"),
        ({"imbalance_factor": 2, "profile": "linear"}, "^imbalance_profile: 'linear' is unknown; use one of exp, step"),
        ({"imbalance_factor": 2, "order": "name"}, "^order: 'name' is unknown; use one of label, frequency"),
    ],
)
def test_bad_long_tail_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_indices(np.repeat(np.arange(4), 50), **options)


# Digits


def test_digits_are_long_tailed_in_training_only_and_disjoint():
    digits = load_long_tailed("digits", imbalance_factor=50, seed=0)
    assert list(class_counts(digits).values()) == [120, 77, 50, 32, 21, 13, 8, 5, 3, 2]
    assert class_counts(digits["validation"]) == {str(digit): 14 for digit in range(10)}
    assert class_counts(digits["test"]) == {str(digit): 40 for digit in range(10)}
    balanced = load_long_tailed("digits", imbalance_factor=1)
    contents = [image["bytes"] for split in balanced.values() for image in split["image"]]
    assert len(contents) == len(set(contents)) == 10 * (120 + 14 + 40)
    assert set(digits["train"].features) == {"image", "label"}
    assert digits["train"].features["image"] == Image(decode=False)


def test_digits_hold_the_pixels_of_scikit_learn():
    from sklearn.datasets import load_digits

    image = decode_image(load_long_tailed("digits")["test"][0]["image"])  # a zero
    assert image.shape == (3, 8, 8)
    zeros = load_digits().images[load_digits().target == 0]
    assert any(np.array_equal(np.rint(zero * 255 / 16), image[0].numpy()) for zero in zeros)


def test_digits_depend_on_the_seed_in_training_only():
    first, again, other = (load_long_tailed("digits", seed=seed) for seed in (1, 1, 2))
    assert first["train"].to_dict() == again["train"].to_dict() != other["train"].to_dict()
    assert first["test"].to_dict() == other["test"].to_dict()


# Image folders


@pytest.mark.parametrize("validation", ["validation", "val", "valid"])
def test_an_image_folder_with_splits(tmp_path, validation):
    for name, count in {"10": 3, "2": 1, "cat": 2}.items():
        for index in range(count):
            write_image(tmp_path / "train" / name / f"{index}.PNG")
    write_image(tmp_path / validation / "cat" / "deep" / "1.jpg")
    write_image(tmp_path / "test" / "2" / "1.jpg")
    (tmp_path / "test" / "2" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    splits = load_long_tailed(tmp_path)
    assert class_counts(splits) == {"10": 3, "2": 1, "cat": 2}  # sorted as strings
    assert class_counts(splits["validation"]) == {"10": 0, "2": 0, "cat": 1}
    assert splits["test"][0] == {"image": {"bytes": None, "path": str(tmp_path / "test" / "2" / "1.jpg")}, "label": 1}


def test_a_flat_image_folder_is_training_data_and_can_be_made_long_tailed(tmp_path):
    for name in "ab":
        for index in range(10):
            write_image(tmp_path / name / f"{index}.png")
    assert {split: len(rows) for split, rows in load_long_tailed(str(tmp_path)).items()} == {"train": 20}
    assert class_counts(load_long_tailed(tmp_path, imbalance_factor=5)) == {"a": 10, "b": 2}


def test_a_dangling_link_is_left_to_the_reader(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    rows = load_long_tailed(tmp_path)["train"]
    with pytest.raises(ValueError, match=r"2\.png: no such file"):
        decode_image(rows[1]["image"])


def test_bad_image_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no images found; expected .*/train/CLASS/"):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="/train: class folders without images: b; add images or remove the folders"):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "train" / "b" / "1.png")
    write_image(tmp_path / "test" / "c" / "1.png")
    with pytest.raises(ValueError, match="/test: 1 class folders are not among the training classes: c;"):
        load_long_tailed(tmp_path)


def test_a_folder_without_training_split_is_an_error(tmp_path):
    write_image(tmp_path / "val" / "a" / "1.png")
    with pytest.raises(ValueError, match="no train/ beside val/; a training split is needed"):
        load_long_tailed(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "^dataset: 'digit' is neither an existing folder nor a known name; did you mean 'digits'"),
        (
            "/no/such/folder",
            "^dataset: '/no/such/folder' is neither an existing folder nor a known name; give an existing",
        ),
        (__file__, "is a file; name the folder of the images"),
    ],
)
def test_unknown_sources_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_long_tailed(source)


# Parquet folders


def write_parquet(file, columns, features=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        table = pa.table(columns)
    else:
        schema = Features(features).arrow_schema
        table = pa.table(columns, schema=schema)
    pq.write_table(table, file)


IMAGES = [{"bytes": encoded(), "path": f"{index}.png"} for index in range(3)]


@pytest.mark.parametrize("place", ["", "data", "plain_text"])
def test_a_parquet_folder_in_the_hub_layout(tmp_path, place):
    features = {"img": Image(), "label": ClassLabel(names=["cat", "ant"]), "id": Value("string")}
    for shard, labels in enumerate([[1, 0, 1], [0, 1, 1]]):
        columns = {"img": IMAGES, "label": labels, "id": ["x", "y", "z"]}
        write_parquet(tmp_path / place / f"train-0000{shard}-of-00002.parquet", columns, features)
    write_parquet(tmp_path / place / "test-00000-of-00001.parquet", columns, features)
    before = sorted(tmp_path.rglob("*"))
    splits = load_long_tailed(tmp_path)
    assert class_counts(splits) == {"cat": 2, "ant": 4}  # the schema's order, not the alphabet's
    assert class_counts(splits["test"]) == {"cat": 1, "ant": 2}
    assert splits["train"][4] == {"image": IMAGES[1], "label": 1}
    assert sorted(tmp_path.rglob("*")) == before


def test_parquet_columns_without_metadata_are_named_by_the_user(tmp_path):
    columns = {"picture": [image["bytes"] for image in IMAGES], "kind": ["b", "a", "b"], "number": [0, 2, 1]}
    write_parquet(tmp_path / "train.parquet", columns)
    with pytest.raises(ValueError, match="^image_column: cannot be inferred for .*; name one of picture, kind, number"):
        load_long_tailed(tmp_path)
    with pytest.raises(ValueError, match="^label_column: .* has no column 'class'; name one of picture, kind, number"):
        load_long_tailed(tmp_path, image_column="picture", label_column="class")
    by_name = load_long_tailed(tmp_path, image_column="picture", label_column="kind")["train"]
    assert class_counts(by_name) == {"a": 1, "b": 2}
    assert by_name[0] == {"image": {"bytes": encoded(), "path": None}, "label": 1}
    by_number = load_long_tailed(tmp_path, image_column="picture", label_column="number")
    assert class_counts(by_number) == {"0": 1, "1": 1, "2": 1}
    with pytest.raises(ValueError, match="^image_column: the column contains string, not encoded images"):
        load_long_tailed(tmp_path, image_column="kind", label_column="number")


@pytest.mark.parametrize(
    ("values", "counts"), [([True, False, True], {"false": 1, "true": 2}), ([1.0, 0.5, 1.0], {"0.5": 1, "1": 2})]
)
def test_labels_that_are_neither_whole_numbers_nor_strings_are_named_as_arrow_writes_them(tmp_path, values, counts):
    write_parquet(tmp_path / "train.parquet", {"picture": [image["bytes"] for image in IMAGES], "kind": values})
    splits = load_long_tailed(tmp_path, image_column="picture", label_column="kind")
    assert class_counts(splits) == counts
    assert splits["train"]["label"][:] == [1, 0, 1]


def test_several_label_columns_need_a_choice_unless_one_is_called_label(tmp_path):
    features = {"image": Image(), "fine_label": ClassLabel(names=["a", "b"]), "coarse_label": ClassLabel(names=["c"])}
    columns = {"image": IMAGES, "fine_label": [0, 1, 1], "coarse_label": [0, 0, 0]}
    write_parquet(tmp_path / "train-0.parquet", columns, features)
    with pytest.raises(ValueError, match="^label_column: cannot be inferred for .*; name one of fine_label, coarse"):
        load_long_tailed(tmp_path)
    assert class_counts(load_long_tailed(tmp_path, label_column="fine_label")) == {"a": 1, "b": 2}


@pytest.mark.parametrize("label", [7, -1, None])
def test_a_label_out_of_range_names_its_row(tmp_path, label):
    features = {"image": Image(), "label": Value("int64")}
    write_parquet(tmp_path / "train-0.parquet", {"image": IMAGES, "label": [0, 1, label]}, features)
    table = pq.read_table(tmp_path / "train-0.parquet")
    with_names = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}).arrow_schema.metadata
    pq.write_table(table.replace_schema_metadata(with_names), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=f"label {label} of train row 2 is not one of the 2 classes"):
        load_long_tailed(tmp_path)


def test_broken_and_incomplete_parquet_folders_are_named(tmp_path):
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"no train-\*.parquet beside test-0.parquet"):
        load_long_tailed(tmp_path)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train-0\.parquet: not a readable Parquet file"):
        load_long_tailed(tmp_path)


def test_missing_parquet_files_of_a_split_are_noticed(tmp_path):
    features = {"image": Image(), "label": ClassLabel(names=["a", "b"])}
    write_parquet(tmp_path / "train-00000-of-00002.parquet", {"image": IMAGES, "label": [0, 1, 0]}, features)
    with pytest.raises(ValueError, match="contains 1 of the 2 files that train-00000-of-00002.parquet belongs to"):
        load_long_tailed(tmp_path)


@needs_shared
def test_the_real_parquet_folders_have_the_published_counts():
    for name in ("grocery", "grocery_fine"):
        known = json.loads((SHARED / f"data/class_counts/{name}.json").read_text())
        column = "fine_label" if name == "grocery_fine" else None
        counts = class_counts(load_long_tailed(SHARED / "data/grocery", label_column=column))
        assert counts == dict(zip(known["class_names"], known["class_counts"], strict=True))
    cifar = load_long_tailed(SHARED / "data/cifar10_jpeg", imbalance_factor=100)
    assert list(class_counts(cifar).values()) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


# Saved datasets and the Hub


def saved_columns():
    features = Features({"picture": Image(), "kind": ClassLabel(names=["cat", "ant"]), "id": Value("int64")})
    return Dataset.from_dict({"picture": IMAGES, "kind": [1, 0, 1], "id": [1, 2, 3]}, features=features)


def test_a_folder_saved_by_datasets_stays_on_disk(tmp_path):
    DatasetDict({"train": saved_columns(), "valid": saved_columns()}).save_to_disk(tmp_path / "both")
    splits = load_long_tailed(tmp_path / "both")
    assert list(splits) == ["train", "validation"]
    assert class_counts(splits) == {"cat": 1, "ant": 2}
    assert splits["train"][1] == {"image": IMAGES[1], "label": 0}
    assert splits["train"].cache_files  # memory-mapped, not copied
    saved_columns().save_to_disk(tmp_path / "single")
    assert list(load_long_tailed(tmp_path / "single")) == ["train"]


def labeled(names, labels):
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": IMAGES[: len(labels)], "label": labels}, features=features)


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_a_split_that_numbers_its_classes_otherwise_is_matched_by_name(tmp_path, layout):
    """A test set without images of one class has other numbers, as `imagefolder` makes them."""

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
    with pytest.raises(ValueError, match="label 'emu' of test row 1 is not one of the 3 classes"):
        load_long_tailed(save(tmp_path / "other", train=train, test=labeled(["dog", "emu"], [0, 1])))
    folder = save(tmp_path / "hidden", train=train, test=labeled(["cat", "dog", "lynx"], [-1, -1]))
    with pytest.warns(UserWarning, match="the test split has no labels and is ignored"):
        assert list(load_long_tailed(folder)) == ["train"]


def test_arrow_files_alone_are_opened_where_they_lie(tmp_path):
    """As the cache of `datasets` names them, without the files that describe them."""
    saved_columns().save_to_disk(tmp_path / "saved")
    (source,) = (tmp_path / "saved").glob("*.arrow")
    for name in ("parquet-train-00000-of-00002.arrow", "parquet-train-00001-of-00002.arrow", "parquet-test.arrow"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).write_bytes(source.read_bytes())
    splits = load_long_tailed(tmp_path / "bare")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "test": 3}
    assert class_counts(splits) == {"cat": 2, "ant": 4}
    assert splits["train"][1] == {"image": IMAGES[1], "label": 0}
    assert splits["train"].cache_files
    (tmp_path / "bare" / "parquet-train-00001-of-00002.arrow").write_bytes(b"no arrow")
    with pytest.raises(ValueError, match="cannot be read as Arrow files"):
        load_long_tailed(tmp_path / "bare")


def test_a_hub_data_set_is_opened_by_its_id(monkeypatch):
    asked = []

    def load_dataset(hub_id):
        asked.append(hub_id)
        rows = saved_columns().add_column("name", ["b", "a", "b"])
        return DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr("livt_hf.data.sources.hub.datasets.load_dataset", load_dataset)
    assert class_counts(load_long_tailed("someone/pets", imbalance_factor=2)) == {"cat": 1, "ant": 1}
    by_name = load_long_tailed("someone/pets", label_column="name")["test"]
    assert class_counts(by_name) == {"a": 1, "b": 2}
    assert by_name[0] == {"image": IMAGES[0], "label": 1}
    assert asked == ["someone/pets"] * 2
    with pytest.raises(ValueError, match="^dataset: 'cifar10-lt' has 10 classes, but uoft-cs/cifar10 has 2; check"):
        load_long_tailed("cifar10-lt", label_column="kind")


def test_offline_the_hub_id_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("huggingface_hub.constants", "datasets.config"):  # which read the variable when imported
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    message = (
        r"^dataset: 'uoft-cs/cifar10' cannot be loaded from the Hub \(.*\); it is not in the local cache and "
        "HF_HUB_OFFLINE is set; or name a folder with the images as --data_dir$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_long_tailed("cifar10-lt")
    assert "\n" not in str(caught.value)
