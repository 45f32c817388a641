"""List files, CSV files and the named sets that are made of them; class names across different orders."""

import json
import re
import time
import warnings

import numpy as np
import PIL.Image
import pytest

from helpers.paths import SHARED
from livt_hf.data import class_counts, load_long_tailed, long_tailed_indices, match_labels
from livt_hf.data.sources.benchmarks import LIST_SETS, KnownSet, warn_of_differences, with_imagenet_names
from livt_hf.data.table import image_column, image_dataset

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


def write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (4, 4)).save(root / name)


def write(file, text):
    file.write_text(text)
    return file


def one_image_per_list(tmp_path, *lists):
    """The images of lists, without the images: only the first of each exists."""
    for file in lists:
        write_images(tmp_path, file.read_text().splitlines()[0].rsplit(" ", 1)[0].replace(".JPEG", ".jpeg"))
        first = tmp_path / file.read_text().splitlines()[0].rsplit(" ", 1)[0]
        if not first.exists():
            first.with_suffix(".jpeg").rename(first)
    return tmp_path


# Lists and CSV files


def test_a_list_names_its_classes_after_the_folders_in_label_order(tmp_path):
    write_images(tmp_path, "train/b/1.jpg", "train/a/2.jpg")
    train = write(tmp_path / "train.txt", "train/b/1.jpg 0\ntrain/a/2.jpg 1\n\ntrain/b/with space.jpg 0\n")
    val = write(tmp_path / "val.txt", "train/a/2.jpg 1\n")
    splits = load_long_tailed(tmp_path, train_list=train, val_list=val)
    assert class_counts(splits) == {"b": 2, "a": 1}
    assert class_counts(splits["validation"]) == {"b": 0, "a": 1}
    assert splits["train"][2] == {
        "image": {"bytes": None, "path": str(tmp_path / "train/b/with space.jpg")},
        "label": 0,
    }


def test_a_csv_of_paths_and_labels(tmp_path):
    write_images(tmp_path, "1.png", "2.png", "x/3.png")
    plain = write(tmp_path / "plain.csv", '1.png,dog\n2.png,"cat, wild"\nx/3.png,dog\n')
    assert class_counts(load_long_tailed(plain)) == {"cat, wild": 1, "dog": 2}
    headed = write(tmp_path / "headed.csv", "id,label,path\n7,3,1.png\n8,11,2.png\n9,3,x/3.png\n")
    splits = load_long_tailed(headed, val_list=headed)
    assert class_counts(splits) == {"3": 2, "11": 1}  # the folders do not tell, so the numbers do
    assert splits["validation"][1]["image"]["path"] == str(tmp_path / "2.png")
    other = write(tmp_path / "lists.csv", "file,weight,kind\n1.png,5,a\n2.png,6,b\n")
    assert class_counts(load_long_tailed(str(other), label_column="kind")) == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="^label_column: .* has no column 'class'; name one of file, weight, kind"):
        load_long_tailed(other, label_column="class")


def test_numbers_in_a_csv_may_be_padded(tmp_path):
    write_images(tmp_path, "1.png", "2.png", "3.png")
    train = write(tmp_path / "train.csv", "path,label\n1.png,10\n2.png,01\n3.png,01\n")
    val = write(tmp_path / "val.csv", "path,label\n1.png,10\n2.png,1\n")
    splits = load_long_tailed(train, val_list=val)
    assert class_counts(splits) == {"1": 2, "10": 1}
    assert splits["validation"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.jpg 0\na/2.jpg\n", r"train.txt: line 2 is 'a/2.jpg', not 'path label' with a whole number"),
        ("a/1.jpg cat\n", r"train.txt: line 1 is 'a/1.jpg cat', not 'path label'"),
        ("", r"train.txt: the list is empty"),
        ("a/1.jpg 0\nb/1.jpg 1\n", r"none of its images is under .*, for example .*a/1.jpg; correct --data_dir"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_long_tailed(tmp_path, train_list=write(tmp_path / "train.txt", text))


def test_lists_that_do_not_belong_together_are_named(tmp_path):
    write_images(tmp_path, "a/1.jpg", "b/1.jpg")
    train = write(tmp_path / "train.txt", "a/1.jpg 0\nb/1.jpg 1\n")
    with pytest.raises(ValueError, match=r"val.txt: label 2 \(entry 2\) is not in the training list"):
        load_long_tailed(tmp_path, train_list=train, val_list=write(tmp_path / "val.txt", "a/1.jpg 0\nb/1.jpg 2\n"))
    swapped = write(tmp_path / "swapped.txt", "a/1.jpg 1\nb/1.jpg 0\n")
    with pytest.raises(ValueError, match="entry 1, a/1.jpg, has the label of class 'b' in the training list"):
        load_long_tailed(tmp_path, train_list=train, val_list=swapped)
    with pytest.raises(ValueError, match="no such list file"):
        load_long_tailed(tmp_path, train_list=tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="^train_list: none was given beside the other lists"):
        load_long_tailed(tmp_path, val_list=train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "places-lt"}, "^dataset: 'places-lt' needs --data_dir, the folder that the paths in its lists"),
        ({"source": "inat18", "data_dir": "."}, r"put iNaturalist18_train.txt into \. or name it with --train_list"),
        ({"source": "imagenet-bal"}, "needs --data_dir, the folder of ImageNet's train/ and val/"),
        ({"source": "digits", "data_dir": "."}, r"^data_dir: '\.' is not used with --dataset digits"),
        ({"source": "places-lt", "data_dir": "/gone"}, "^data_dir: '/gone' is not a folder"),
        ({"source": "places_lt"}, "did you mean 'places-lt'"),
    ],
)
def test_missing_parts_of_named_sets_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_long_tailed(**options)


# The named sets


def test_a_set_with_the_published_totals_gives_no_warning_and_another_says_how_it_differs(monkeypatch):
    counts = [150, 60, 5]
    labels = np.repeat(range(3), counts)
    images = image_dataset(image_column(paths=["x"] * len(labels)), labels, "abc", "known")
    monkeypatch.setitem(LIST_SETS, "tiny-lt", KnownSet({}, {"train": 215}, 3, 150, 5, (1, 1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_differences("tiny-lt", {"train": images})
    message = (
        "tiny-lt: differs from the published set: train images 214 instead of 215, largest class 149 instead of 150$"
    )
    with pytest.warns(UserWarning, match=message):
        warn_of_differences("tiny-lt", {"train": images.select(range(1, 215))})


@needs_shared
@pytest.mark.parametrize(
    ("name", "file"), [("imagenet-lt", "imagenet_lt"), ("places-lt", "places_lt"), ("inat18", "inat18")]
)
def test_the_shipped_totals_are_those_of_the_recorded_class_counts(name, file):
    counts = np.array(json.loads((SHARED / f"data/class_counts/{file}.json").read_text())["class_counts"])
    known = LIST_SETS[name]
    assert (counts.sum(), len(counts)) == (known.sizes["train"], known.classes)
    assert (counts.max(), counts.min()) == (known.largest, known.smallest)
    assert ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()) == known.groups


@needs_shared
def test_places_lt_from_its_real_lists(tmp_path):
    folder = SHARED / "data/longtail_lists/places_lt"
    lists = {split: folder / f"Places_LT_{split}.txt" for split in ("train", "val", "test")}
    root = one_image_per_list(tmp_path, *lists.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_long_tailed(
            "places-lt", data_dir=root, **{f"{split}_list": file for split, file in lists.items()}
        )
    known = json.loads((SHARED / "data/class_counts/places_lt.json").read_text())
    assert class_counts(splits) == dict(zip(known["class_ids"], known["class_counts"], strict=True))
    assert {split: len(rows) for split, rows in splits.items()} == LIST_SETS["places-lt"].sizes
    # As an image folder the classes are sorted as strings, which is another order at five places.
    to_official = match_labels(sorted(known["class_ids"]), splits["train"].features["label"].names)
    assert to_official.tolist() == known["folder_sorted_labels"]
    assert (to_official != np.arange(365)).sum() == 5


@needs_shared
def test_the_validation_lists_of_imagenet_lt_and_inat18(tmp_path):
    folder = SHARED / "data/longtail_lists"
    imagenet, inat = folder / "imagenet_lt/ImageNet_LT_val.txt", folder / "inat18/iNaturalist18_val.txt"
    root = one_image_per_list(tmp_path, imagenet, inat)
    with pytest.warns(UserWarning, match="imagenet-lt: .* train images 20000 instead of 115846"):
        splits = load_long_tailed("imagenet-lt", data_dir=root, train_list=imagenet, val_list=imagenet)
    names = splits["train"].features["label"].names
    known = json.loads((SHARED / "data/class_counts/imagenet_lt.json").read_text())
    assert [name.split(" ")[0] for name in names] == known["class_ids"]
    assert set(class_counts(splits["validation"]).values()) == {20}
    with pytest.warns(UserWarning, match="inat18: .* train images 24426 instead of 437513"):
        splits = load_long_tailed("inat18", data_dir=root, train_list=inat)
    assert splits["train"].features["label"].names == [str(label) for label in range(8142)]


def test_imagenet_bal_takes_160_images_a_class(tmp_path):
    for name, count in {"n01440764": 170, "n02012849": 161, "n03126707": 3}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "train" / name / f"{index}.JPEG").touch()
    splits = load_long_tailed("imagenet-bal", data_dir=tmp_path)
    assert class_counts(splits) == {"n01440764 tench": 160, "n02012849 crane": 160, "n03126707 crane": 3}


# Class names


def test_repeated_imagenet_names_do_not_collide():
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    names = with_imagenet_names(wnids)
    assert len(set(names)) == len(wnids) == 1000
    assert [name for name in names if re.search("crane|maillot", name)] == [
        "n02012849 crane",
        "n03126707 crane",
        "n03710637 maillot",
        "n03710721 maillot",
    ]
    assert with_imagenet_names(["other"]) == ["other"]


def test_labels_are_matched_by_name():
    model = ["0", "1", "10", "11", "2"]  # sorted as strings
    assert match_labels(["0", "1", "2", "10", "11"], model).tolist() == [0, 1, 4, 2, 3]
    assert match_labels(["2", "10"], model).tolist() == [4, 2]  # a part of the classes


def test_labels_are_matched_by_wordnet_id_and_number():
    model = ["n01440764 tench", "n03126707 crane", "n02012849 crane"]
    assert match_labels(["n02012849", "n01440764"], model).tolist() == [2, 0]
    assert match_labels(["7 Quercus alba", "12 Hermodice"], ["12", "7"]).tolist() == [1, 0]


def test_names_that_do_not_match_are_listed_on_both_sides():
    message = "photos: the model does not know 2 of its classes: fox, owl; the model's classes without counterpart: emu"
    with pytest.raises(ValueError, match=f"^{message}$"):
        match_labels(["cat", "fox", "owl"], ["cat", "emu"], where="photos")
    with pytest.raises(ValueError, match="does not know 25 of its classes: .* and 5 more; .* and 10 more"):
        match_labels([f"a{index}" for index in range(25)], [f"b{index}" for index in range(30)])


# Scale


def test_the_largest_set_is_counted_and_cut_in_less_than_two_seconds():
    """iNaturalist 2018: 437,513 rows in 8,142 classes. It takes about 0.2 s; the limit is for slow machines."""
    labels = np.arange(437_513) % 8142
    names = [str(label) for label in range(8142)]
    rows = image_dataset(image_column(paths=["x.jpg"] * len(labels)), labels, names, "large")
    start = time.process_time()
    assert list(class_counts(rows).values()) == np.bincount(labels).tolist()
    kept = long_tailed_indices(labels, 10)
    assert sum(class_counts(rows.select(kept)).values()) == len(kept)
    assert time.process_time() - start < 2
