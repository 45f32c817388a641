"""Benchmarks: official lists, published totals, ImageNet's class names, digits."""

import json
import re
import warnings

import numpy as np
import pytest

from helpers.paths import SHARED
from livt_hf.data import (
    class_counts,
    decode_image,
    load_long_tailed,
    match_labels,
)
from livt_hf.data.sources.benchmarks import LIST_SETS, KnownSet, warn_of_differences, with_imagenet_names
from livt_hf.data.table import image_column, image_dataset

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared")


def one_image_per_list(tmp_path, *lists):
    """The first image of each list: a sample must exist, but none is read."""
    for file in lists:
        first = tmp_path / file.read_text().splitlines()[0].rsplit(" ", 1)[0]
        first.parent.mkdir(parents=True, exist_ok=True)
        first.touch()
    return tmp_path


def test_only_a_dataset_that_differs_from_the_published_totals_causes_a_warning(monkeypatch):
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
    # In an image folder classes are sorted as strings, which differs in five places.
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


def test_digits_have_the_pixels_of_scikit_learn():
    from sklearn.datasets import load_digits

    image = decode_image(load_long_tailed("digits")["test"][0]["image"])  # a zero
    assert image.shape == (3, 8, 8)
    zeros = load_digits().images[load_digits().target == 0]
    assert any(np.array_equal(np.rint(zero * 255 / 16), image[0].numpy()) for zero in zeros)
