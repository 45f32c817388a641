"""`livt dataset check` as a whole: what it prints, its exit status, its tables and its page."""

import csv
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from helpers.images import photo, symmetric_features
from livt_hf.cli import main
from livt_hf.data import load_long_tailed
from livt_hf.data.tools.check import CheckResult
from livt_hf.evaluation import dataset_check
from livt_hf.evaluation.dataset_check import doubt_lines, doubted_labels, write_findings
from livt_hf.evaluation.label_issues import judge_labels


@pytest.fixture
def folder(tmp_path):
    """10 cats and 4 <lynx>es in training, 2 and 1 in test; none alike."""
    for split, counts in {"train": (10, 4), "test": (2, 1)}.items():
        for name, count in zip(("cat", "<lynx>"), counts, strict=True):
            for index in range(count):
                file = tmp_path / "photos" / split / name / f"{index}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                seed = index + 20 * (name == "cat") + 50 * (split == "test")
                photo(60, 80, seed=seed).save(file, quality=95)
    return tmp_path / "photos"


def check(folder, tmp_path, *words):
    out = tmp_path / "out"
    return main(["dataset", "check", "--dataset", str(folder), "--output_dir", str(out), "--num_workers", "0", *words])


def rows(file):
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_clean_set_has_a_report_and_no_tables(folder, tmp_path, capsys):
    assert check(folder, tmp_path) == 0
    assert f"report: {tmp_path}/out/check.html\n" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["check.html"]
    page = (tmp_path / "out/check.html").read_text()
    assert "No near-duplicates between splits or between classes were found." in page
    assert str(tmp_path) not in page


def test_near_duplicates_are_warnings_with_pictures(folder, tmp_path, capsys):
    with PIL.Image.open(folder / "train/cat/3.jpg") as image:
        image.resize((40, 30)).save(folder / "test/cat/copy.jpg", quality=70)
    with PIL.Image.open(folder / "train/<lynx>/1.jpg") as image:
        image.convert("L").save(folder / "train/cat/gray.jpg")
    with PIL.Image.open(folder / "train/cat/5.jpg") as image:
        image.save(folder / "train/cat/again.jpg", quality=60)
    assert check(folder, tmp_path) == 0
    out = capsys.readouterr().out
    assert "warning: 1 image of test nearly equal to one of train, which inflates the accuracy" in out
    assert f"  train {folder}/train/cat/3.jpg (cat) ~ test {folder}/test/cat/copy.jpg (cat)" in out
    assert "warning: 1 group of nearly equal training images with different labels" in out
    assert "within a class of a split: 2 images in 1 group of near-duplicates" in out
    table = rows(tmp_path / "out/duplicates.csv")
    assert {row["found_by"] for row in table} == {"hash"}
    assert [(row["group"], row["split"], row["label"]) for row in table] == [
        ("1", "train", "<lynx>"),  # the smallest class first
        ("1", "train", "cat"),
        ("2", "train", "cat"),
        ("2", "test", "cat"),
        ("3", "train", "cat"),
        ("3", "train", "cat"),
    ]
    page = (tmp_path / "out/check.html").read_text()
    assert page.count("<figure>") == 4
    assert "&lt;lynx&gt;" in page
    assert "<lynx>" not in page
    assert "train/cat/3.jpg" in page
    assert str(tmp_path) not in page


def test_identical_images_with_different_labels_are_an_error(folder, tmp_path, capsys):
    (folder / "train/cat/same.jpg").write_bytes((folder / "train/<lynx>/2.jpg").read_bytes())
    assert check(folder, tmp_path) == 1
    out = capsys.readouterr().out
    assert "1 training image under another label than an identical one: one of the two labels is wrong" in out
    assert f"  {folder}/train/<lynx>/2.jpg (<lynx>) = {folder}/train/cat/same.jpg (cat)" in out
    assert "nearly" not in out
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    row = ("train/&lt;lynx&gt;/2.jpg", "&lt;lynx&gt;", "train/cat/same.jpg", "cat")
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "1 pair." in page


def test_identical_images_are_listed_wherever_they_are(folder, tmp_path):
    for copy, of in {"train/cat/a": "train/cat/0", "train/cat/b": "train/cat/0", "test/cat/c": "test/cat/1"}.items():
        shutil.copy(folder / f"{of}.jpg", folder / f"{copy}.jpg")
    assert check(folder, tmp_path) == 0
    table = [(row["group"], row["split"], row["file"]) for row in rows(tmp_path / "out/duplicates.csv")]
    assert table == [
        *(("1", "train", f"{folder}/train/cat/{name}.jpg") for name in "0ab"),
        *(("2", "test", f"{folder}/test/cat/{name}.jpg") for name in "1c"),
    ]
    assert {row["found_by"] for row in rows(tmp_path / "out/duplicates.csv")} == {"bytes"}


def test_options_of_the_model_without_one_are_told(folder, tmp_path, capsys):
    assert check(folder, tmp_path, "--folds", "3", "--batch_size", "8") == 0
    assert "folds, batch_size: no effect without --model\n" in capsys.readouterr().out


def test_a_page_of_another_dataset_is_not_replaced_unasked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["dataset", "check", "--dataset", "photos", "--num_workers", "0"]
    assert main(words) == 0
    assert main(words) == 0
    (tmp_path / "check.html").write_text("mine")
    assert main(words) == 2
    assert "output_dir: 'check.html' is there already and is not about photos" in capsys.readouterr().err


def features_of(splits, moved):
    """Features that tell the classes apart; ``moved`` images look like the other class, row 1 is unreadable."""
    labels = np.array(splits["train"]["label"])
    labels[moved] = 1 - labels[moved]
    features = (6.0 * np.eye(2, 4)[labels] + np.random.default_rng(0).normal(size=(len(labels), 4))).astype(np.float32)
    features[moved] *= 2  # more clearly than the average image of that class, as the threshold demands
    features[1] = np.nan
    return features


def test_doubted_labels_are_listed_with_files_of_their_own_rows(folder, tmp_path):
    splits = load_long_tailed(folder)
    names = splits["train"].features["label"].names
    files = [image["path"] for image in splits["train"].data.column("image").to_pylist()]
    (moved,) = (row for row, file in enumerate(files) if file.endswith("cat/7.jpg"))
    issues = doubted_labels(splits["train"], features_of(splits, [moved]), folds=4, seed=0, device="cpu")
    assert issues.rows.tolist() == [moved]
    out = tmp_path / "out"
    out.mkdir()
    checked = CheckResult(images={"train": 14, "test": 3}, bad_images={"train": [], "test": []})
    assert write_findings(out, str(folder), splits, checked, None, issues, "livt dataset check") == [
        out / "check.html",
        out / "label_issues.csv",
    ]
    (row,) = rows(out / "label_issues.csv")
    assert (row["file"], row["label"], row["suggested_label"]) == (files[moved], "cat", "<lynx>")
    assert row["class_images"] == "10"
    margin = float(row["probability"]) - float(row["suggested_probability"])
    assert float(row["margin"]) == pytest.approx(margin, abs=2e-6)
    page = (out / "check.html").read_text()
    assert re.search(r"<b>cat</b><br>→ &lt;lynx&gt; \(\d+ %\)", page)
    assert str(tmp_path) not in page
    text = "\n".join(doubt_lines(issues, splits["train"]))
    assert "warning: the labels of 1 of 14 training images are doubted (7.1 %)" in text
    assert "  cat: 1 of 10 images, mostly <lynx> (1)" in text
    assert names == ["<lynx>", "cat"]


def test_images_similar_by_features_stand_apart(folder, tmp_path, monkeypatch, capsys):
    """With a model whose features are the same for a mirrored image."""
    with PIL.Image.open(folder / "train/cat/5.jpg") as image:
        image.save(folder / "test/cat/copy.jpg", quality=60)
    with PIL.Image.open(folder / "train/<lynx>/1.jpg") as image:
        image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "train/cat/mirrored.jpg", quality=95)
    monkeypatch.setattr("livt_hf.evaluation.features.load_feature_model", lambda model: (None, None))
    monkeypatch.setattr(
        "livt_hf.evaluation.features.split_features", lambda model, rows, *_, **__: symmetric_features(rows)
    )
    assert check(folder, tmp_path, "--model", "mirror", "--folds", "2") == 0
    out = capsys.readouterr().out
    assert "similar by features: a similarity of 0." in out
    assert "warning: 1 group of training images similar by features with different labels" in out
    assert "of test similar by features" not in out  # the hash has found that one
    table = rows(tmp_path / "out/duplicates.csv")
    assert [(row["group"], row["found_by"], row["split"], row["label"]) for row in table] == [
        ("1", "hash", "train", "cat"),
        ("1", "hash", "test", "cat"),
        ("2", "features", "train", "<lynx>"),
        ("2", "features", "train", "cat"),
    ]
    page = (tmp_path / "out/check.html").read_text()
    assert page.index("Near-duplicates between splits</h2>") < page.index(
        "Similar by features, with different labels</h2>"
    )
    assert "unrelated pairs" in page


def test_one_class_is_compared_but_not_judged_and_too_many_folds_are_named_at_once(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("livt_hf.evaluation.features.load_feature_model", lambda model: (None, None))
    monkeypatch.setattr(
        "livt_hf.evaluation.features.split_features", lambda model, rows, *_, **__: symmetric_features(rows)
    )
    assert check(folder, tmp_path, "--model", "mirror", "--folds", "11") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        "error: folds: 11 is out of range; it must be at least 2 and at most the size of the largest class, 10"
    )
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "<lynx>")
    assert check(folder, tmp_path, "--model", "mirror") == 0
    assert "labels: not judged, as the training images are of one class" in capsys.readouterr().out
    assert not (tmp_path / "out/label_issues.csv").exists()


def test_pictures_show_each_class_before_any_class_a_second_time(monkeypatch):
    monkeypatch.setattr(dataset_check, "PICTURED", 5)
    monkeypatch.setattr(dataset_check, "PER_CLASS", 2)
    labels = np.array([0] * 8 + [1] * 4)
    values = np.repeat([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.8, 0.2]], [3, 5, 1, 3], axis=0)
    issues = judge_labels(labels, values, 2)
    assert issues.labels.tolist() == [0] * 5 + [1] * 3
    assert issues.labels[dataset_check._to_show(issues, [8, 4])].tolist() == [1, 1, 0, 0, 1]
