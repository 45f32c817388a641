"""List files and CSV files."""

import PIL.Image
import pytest

from livt_hf.data import (
    class_counts,
    load_long_tailed,
)


def write_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (4, 4)).save(root / name)


def write(file, text):
    file.write_text(text)
    return file


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
    assert class_counts(splits) == {"3": 2, "11": 1}  # no folder per label, so labels are names
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
