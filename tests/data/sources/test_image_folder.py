"""Image folders: splits, class names, links, and errors that name the folder."""

from pathlib import Path

import PIL.Image
import pytest

from livt_hf.data import (
    class_counts,
    decode_image,
    load_long_tailed,
)
from livt_hf.data.table import left_out


def write_image(path, color=(200, 30, 90), size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).save(path)


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
    with pytest.raises(ValueError, match=r": no images found \(no files\); expected .*/train/CLASS/"):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="/train: class folders without images: b; add images or remove the folders"):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "train" / "b" / "1.png")
    write_image(tmp_path / "test" / "c" / "1.png")
    with pytest.raises(ValueError, match="/test: none of its 1 class folders is among the training classes: c;"):
        load_long_tailed(tmp_path)


def test_images_of_classes_without_training_images_are_left_out_and_counted(tmp_path, capsys):
    for name in ("a", "b"):
        write_image(tmp_path / "train" / name / "1.png")
    for path in ("b/1.png", "c/1.png", "c/deeper/2.png", "d/1.png"):
        write_image(tmp_path / "test" / path)
    (tmp_path / "test" / "empty").mkdir()
    splits = load_long_tailed(tmp_path)
    assert [(Path(row["image"]["path"]).parent.name, row["label"]) for row in splits["test"]] == [("b", 1)]
    assert splits["test"].features == splits["train"].features
    assert capsys.readouterr().err == (
        f"{tmp_path}/test: 3 images left out, because no training image has their class: c (2), d (1); rename the "
        "class if it is misspelled\n"
    )
    assert left_out(splits["test"].select([0])) == {"c": 2, "d": 1}
    assert left_out(splits["train"]) == {}


def test_a_folder_without_training_split_is_an_error(tmp_path):
    write_image(tmp_path / "val" / "a" / "1.png")
    with pytest.raises(ValueError, match="no train/ beside val/; a training split is needed"):
        load_long_tailed(tmp_path)


def counts_of(folder):
    return {split: class_counts(rows) for split, rows in load_long_tailed(folder).items()}


def write_images(folder, *names):
    for name in names:
        write_image(folder / name)


@pytest.mark.parametrize(
    ("folder", "split"),
    [("Training", "train"), ("VALID", "validation"), ("dev", "validation"), ("Testing", "test"), ("eval", "test")]
    + [("evaluation", "test")],
)
def test_splits_have_the_names_that_the_hub_knows(tmp_path, folder, split):
    write_images(tmp_path, "train/a/1.png" if split != "train" else "test/a/1.png", f"{folder}/a/1.png")
    assert counts_of(tmp_path)[split] == {"a": 1}


def test_a_folder_named_as_a_split_is_a_class_if_it_contains_images_alone(tmp_path, caplog):
    write_images(tmp_path / "vehicles", "bus/1.png", "train/1.png", "tram/1.png", "tram/2.png")
    assert counts_of(tmp_path / "vehicles") == {"train": {"bus": 1, "train": 1, "tram": 2}}
    write_images(tmp_path / "inside", *(f"train/{name}/1.png" for name in ("test", "train", "val")), "val/val/1.png")
    assert counts_of(tmp_path / "inside")["validation"] == {"test": 0, "train": 0, "val": 1}
    assert caplog.messages == []
    write_images(tmp_path / "three", "train/1.png", "test/1.png", "val/1.png", "val/2.png")
    with pytest.raises(ValueError, match="three: has 4 images in test/, train/, val/, but nothing says which class"):
        load_long_tailed(tmp_path / "three")


def test_images_without_class_folders_are_counted_in_the_error(tmp_path):
    for index in range(6):
        write_image(tmp_path / "train" / f"{index}.png")
    with pytest.raises(
        ValueError,
        match=r": has 6 images in train/, but nothing says which class .*CLASS/\*.jpg\), or add a metadata.csv",
    ):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "test" / "a" / "1.png")
    with pytest.raises(ValueError, match=r": has 7 images in test/a/, train/, but nothing says"):
        load_long_tailed(tmp_path)
    write_image(tmp_path / "loose" / "1.png")
    (tmp_path / "loose" / "list.csv").write_text("1.png,a\n")
    with pytest.raises(ValueError, match="or give a table of paths and labels as the dataset: list.csv"):
        load_long_tailed(tmp_path / "loose")


def test_images_outside_the_class_folders_are_counted(tmp_path, caplog):
    write_images(
        tmp_path, "train/a/1.png", "train/b/1.png", "train/loose.png", "test/1.png", "test/2.png", "more/a/1.png"
    )
    assert counts_of(tmp_path) == {"train": {"a": 1, "b": 1}}
    assert caplog.messages == [
        f"{tmp_path}/train: left out, 1 image outside the class folders",
        f"{tmp_path}/more: left out, not a split: 1 image",
        f"{tmp_path}/test: left out, no class folders: 2 images",
    ]
    caplog.clear()
    write_images(tmp_path / "zip", "photos/train/a/1.png", "photos/train/b/1.png")
    assert counts_of(tmp_path / "zip") == {"train": {"photos": 2}}
    assert "photos/ is the only class; if the folders in it are the classes" in caplog.messages[0]


def test_two_folders_that_are_the_same_split_are_named(tmp_path):
    write_images(tmp_path, "train/a/1.png", "val/a/1.png", "dev/a/1.png")
    with pytest.raises(ValueError, match="dev/ and val/ are both a validation split; join them"):
        load_long_tailed(tmp_path)


def test_photos_that_are_not_decoded_are_counted(tmp_path, caplog):
    write_images(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/2.HEIC", "a/3.heic", "b/2.dng", "b/notes.txt"):
        (tmp_path / name).write_bytes(b"photo")
    assert counts_of(tmp_path) == {"train": {"a": 1, "b": 1}}
    (message,) = caplog.messages
    assert message.endswith(
        "left out, photos in formats that are not read: 1 .dng, 2 .heic; convert them to JPEG or PNG"
    )
