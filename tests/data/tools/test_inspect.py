"""Printed numbers and the figure of a dataset."""

import numpy as np
import PIL.Image

from livt_hf.data import (
    load_long_tailed,
)
from livt_hf.data.tools.inspect import inspect_dataset


def test_inspect_prints_the_numbers_and_draws(photos, tmp_path):
    (tmp_path / "photos/train/large/4.jpg").write_bytes(b"")
    found = inspect_dataset(photos, tmp_path / "pictures/data.png", groups={"many": 4, "few": 4})
    assert str(found).splitlines() == [
        "train 8, test 2 images, 2 classes",
        "imbalance factor 1.66667 (5 to 3 training images per class)",
        "classes by shot group: many 1 (more than 4 training images), medium 0 (4 to 4 training images), few 1 "
        "(fewer than 4 training images)",
        "sizes of 7 images: height 20 to 60 (median 60), width 16 to 90 (median 80)",
        "1 of the sampled images cannot be read; `livt dataset check` lists all",
        "  large        5",
        "  small        3",
    ]
    with PIL.Image.open(tmp_path / "pictures/data.png") as picture:
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((47, 111, 222), (214, 69, 93)):  # many and few
        assert (colors == color).all(1).sum() > 5000


def test_the_class_list_of_a_large_dataset_is_shortened(tmp_path):
    digits = load_long_tailed("digits")
    found = inspect_dataset(digits, tmp_path / "digits.png", groups={"many": 3, "few": 3, "by": "rank"})
    assert found.groups == {"many": 3, "medium": 4, "few": 3}
    assert "many 3 (the 3 largest classes), medium 4 (the classes between), few 3 (the 3 smallest)" in str(found)
    assert len(str(found).splitlines()) == 4 + 10
    found.class_counts = {str(index): 1000 - index for index in range(100)}
    assert len(str(found).splitlines()) == 4 + 17
