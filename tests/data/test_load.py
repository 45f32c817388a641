"""load_long_tailed: default long tails of the benchmarks, and errors for sources and options that do not fit."""

import pytest
from datasets import Image

from helpers.paths import SHARED
from livt_hf.data import (
    class_counts,
    load_long_tailed,
)

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


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


def test_digits_depend_on_the_seed_in_training_only():
    first, again, other = (load_long_tailed("digits", seed=seed) for seed in (1, 1, 2))
    assert first["train"].to_dict() == again["train"].to_dict() != other["train"].to_dict()
    assert first["test"].to_dict() == other["test"].to_dict()


@needs_shared
def test_the_balanced_cifar_set_has_as_many_images_as_the_tail_equally_many_per_class():
    folder = SHARED / "data/cifar10_jpeg"
    for factor, per_class in ((None, 1240), (10, 2043)):  # of 12,406 and 20,431 images
        splits = load_long_tailed("cifar10-bal", data_dir=folder, imbalance_factor=factor)
        assert set(class_counts(splits).values()) == {per_class}
        assert len(splits["test"]) == 10_000
    tail = load_long_tailed("cifar10-lt", data_dir=folder)["train"]
    balanced = load_long_tailed("cifar10-bal", data_dir=folder)["train"]
    # Both take the first images of the same shuffled list.
    rarest = tail.filter(lambda label: label == 9, input_columns="label")["image"]
    assert rarest[:] == balanced.filter(lambda label: label == 9, input_columns="label")["image"][: len(rarest)]


def test_imagenet_bal_takes_160_images_per_class(tmp_path):
    for name, count in {"n01440764": 170, "n02012849": 161, "n03126707": 3}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "train" / name / f"{index}.JPEG").touch()
    splits = load_long_tailed("imagenet-bal", data_dir=tmp_path)
    assert class_counts(splits) == {"n01440764 tench": 160, "n02012849 crane": 160, "n03126707 crane": 3}


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
def test_missing_parts_of_benchmarks_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_long_tailed(**options)


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
