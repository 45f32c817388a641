"""Printed numbers and the figure of a dataset."""

import numpy as np
import PIL.Image
from matplotlib.text import Text

from livt_hf.cli import main
from livt_hf.data import (
    load_long_tailed,
)
from livt_hf.data.tools.inspect import inspect_dataset
from livt_hf.reporting.chart_style import smallest_font


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


def test_similar_long_names_can_be_told_apart_in_the_figure(tmp_path, monkeypatch):
    names = [f"the same long beginning of a name that goes on, with {end} end" for end in ("one", "another")]
    for name in (*names, "a\u202eb", "\u82f9\u679c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (24, 24)).save(tmp_path / "photos" / name / "1.png")
    figures = []
    monkeypatch.setattr("livt_hf.data.tools.inspect.save_png", lambda figure, *_, **__: figures.append(figure))
    inspect_dataset(load_long_tailed(str(tmp_path / "photos")), tmp_path / "data.png")
    figure = figures[0]
    shown = {text.get_text().replace("\n", "") for text in figure.findobj(Text) if text.get_text().endswith("(1)")}
    assert len(shown) == 4
    assert {"a\\u202eb (1)", "\u82f9\u679c (1)"} <= shown
    assert smallest_font(figure) * 400 / (72 * figure.get_figwidth()) >= 11  # pixels, on a phone


def test_a_picture_of_another_dataset_is_kept(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["dataset", "inspect", "--dataset"]
    assert main([*words, "photos"]) == 0
    assert main([*words, "photos", "--imbalance_factor", "2"]) == 0  # its own picture is replaced
    before = (tmp_path / "dataset.png").read_bytes()
    assert main([*words, "digits"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == (
        "error: output_dir: 'dataset.png' is there already and shows photos; name a folder for the picture with "
        "--output_dir"
    )
    assert (tmp_path / "dataset.png").read_bytes() == before
    assert main([*words, "photoz"]) == 2
    assert "error: dataset: 'photoz' is neither" in capsys.readouterr().err  # not about the picture that is there
    assert main([*words, "digits", "--output_dir", "digits"]) == 0
    (tmp_path / "dataset.png").write_bytes(b"a photo of somebody")
    assert main([*words, "photos"]) == 2
    assert "shows something else" in capsys.readouterr().err


def test_names_are_printed_in_one_direction(photos, tmp_path):
    found = inspect_dataset(photos, tmp_path / "photos.png")
    found.class_counts = {"a\u202eb": 3, "c": 2}
    assert [line.split() for line in str(found).splitlines()[-2:]] == [["a\\u202eb", "3"], ["c", "2"]]


def test_counts_are_aligned_beside_wide_characters(photos, tmp_path):
    found = inspect_dataset(photos, tmp_path / "photos.png")
    found.class_counts = {"\u82f9\u679c": 30, "pear": 5}  # two characters in four columns
    assert str(found).splitlines()[-2:] == ["  \u82f9\u679c       30", "  pear        5"]
