"""Classes are matched by name, WordNet id or number."""

import pytest

from livt_hf.class_names import abbreviate, printable
from livt_hf.data import match_labels


def test_names_are_printed_on_one_line_and_in_one_direction():
    assert printable(" a\r\n\tb\x1b[31m\u202ec\u2028d\udcff ") == "a b [31m\\u202ec d"
    assert printable("\u061c\u200e\u2067") == "\\u061c\\u200e\\u2067"
    assert printable("नमस्\u200dते 苹果") == "नमस्\u200dते 苹果"  # a joiner is part of the spelling
    assert abbreviate(["a\u202eb", "c"], 1) == "a\\u202eb and 1 more"


def test_labels_are_matched_by_name():
    model = ["0", "1", "10", "11", "2"]  # sorted as strings
    assert match_labels(["0", "1", "2", "10", "11"], model).tolist() == [0, 1, 4, 2, 3]
    assert match_labels(["2", "10"], model).tolist() == [4, 2]  # a subset of the classes


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
