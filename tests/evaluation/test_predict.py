"""`livt predict` and a pipeline that cannot import livt_hf give the same probabilities."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BeitImageProcessor

from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.class_names import label_names
from livt_hf.cli import main
from livt_hf.evaluation.predict import (
    abstain_below,
    calibration_advice,
    find_images,
    format_predictions,
    predict_images,
    print_predictions,
    write_predictions,
)
from livt_hf.reporting.blocks import csv_cell

NAMES = ["cat", "dog", "emu", "fox", "gnu", "hen", "bad\x1b[31m\nname"]

PIPELINE = """
import json, sys
sys.modules["livt_hf"] = None
from transformers import pipeline
print(json.dumps(pipeline("image-classification", sys.argv[1])(sys.argv[2:], top_k=7)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    counts = {name: 10 * (label + 1) for label, name in enumerate(NAMES)}
    config = LivtConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        class_counts=counts,
        **label_names(NAMES),
    )
    model = ViTForBalancedClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    model.save_pretrained(path)
    BeitImageProcessor(
        size={"shortest_edge": 18},
        do_center_crop=True,
        crop_size={"height": 16, "width": 16},
        do_convert_rgb=True,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """One image of each common kind."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((90, 61), Image.Resampling.BICUBIC)
    transparent = smooth.copy()
    transparent.putalpha(Image.fromarray(rng.integers(0, 256, (61, 90), dtype=np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: rotated by 90 degrees
    smooth.save(path / "photo.jpg", quality=90)
    smooth.save(path / "turned.jpg", exif=turned)
    smooth.convert("CMYK").save(path / "cmyk.jpg")
    smooth.convert("L").save(path / "gray.png")
    smooth.quantize(16).save(path / "palette.png", transparency=3)
    transparent.save(path / "transparent.png")
    smooth.resize((3, 5)).save(path / "tiny.png")
    return sorted(str(file) for file in path.iterdir())


def test_scores_are_those_of_a_pipeline_without_this_package(folder, images):
    result = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(folder), *images], capture_output=True, text=True, check=True
    )
    expected = json.loads(result.stdout.splitlines()[-1])
    results = list(predict_images(folder, images, top_k=7, batch_size=3))
    assert [result["image"] for result in results] == images
    for ours, theirs in zip(results, expected, strict=True):
        scores = {prediction["label"]: prediction["score"] for prediction in theirs}
        assert len(ours["predictions"]) == len(scores) == 7
        for prediction in ours["predictions"]:
            assert prediction["score"] == pytest.approx(scores[prediction["label"]], abs=1e-5)
    distinct = {tuple(prediction["score"] for prediction in result["predictions"]) for result in results}
    assert len(distinct) == len(images)


def test_most_probable_classes_come_first_and_at_most_all(folder, images):
    (result,) = predict_images(folder, images[:1], top_k=100)
    scores = [prediction["score"] for prediction in result["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 7
    assert sum(scores) == pytest.approx(1.0)
    assert len(next(predict_images(folder, images[:1]))["predictions"]) == 5


def test_16_bit_gray_is_scaled_as_in_training(folder, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = predict_images(folder, [tmp_path / "8.png", tmp_path / "16.png"])
    assert eight["predictions"] == sixteen["predictions"]


def test_unreadable_images_are_reported_and_the_others_predicted(folder, images, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(Path(images[2]).read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    paths = [tmp_path / "missing.png", images[0], tmp_path / "broken.jpg", tmp_path / "text.png", images[1]]
    results = list(predict_images(folder, paths, batch_size=4))
    assert ["error" in result for result in results] == [True, False, True, True, False]
    assert results[1]["predictions"] == next(predict_images(folder, images[:1]))["predictions"]
    capsys.readouterr()
    assert print_predictions(results) == 1
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 3
    assert all(str(path) in line for path, line in zip((paths[0], paths[2], paths[3]), lines, strict=True))
    assert "no such file" in lines[0]
    assert str(images[0]) in output.out
    assert print_predictions(results[1:2]) == 0


def test_names_are_printed_without_line_breaks_and_escapes():
    predictions = [{"label": NAMES[-1], "score": 0.9}, {"label": "cat", "score": 0.0512}]
    text = format_predictions({"image": "a.png", "predictions": predictions})
    assert text == "a.png\n   90.00 %  bad [31m name\n    5.12 %  cat"


@pytest.mark.parametrize("option", ["top_k", "batch_size"])
def test_numbers_below_one_are_errors(folder, images, option):
    with pytest.raises(ValueError, match=f"{option}: 0"):
        list(predict_images(folder, images, **{option: 0}))


def test_folders_and_patterns_expand_to_image_files(folder, images, tmp_path):
    below = tmp_path / "b" / "c"
    below.mkdir(parents=True)
    for name in ("2.jpg", "1.PNG", "notes.txt"):
        (below / name).write_bytes(Path(images[0]).read_bytes())
    (tmp_path / "a.jpg").write_bytes(Path(images[0]).read_bytes())
    inside = [str(below / name) for name in ("1.PNG", "2.jpg")]
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a.jpg"), *inside]
    assert find_images([str(tmp_path / "**" / "*.jpg"), "no.jpg"]) == [str(tmp_path / "a.jpg"), inside[1], "no.jpg"]
    assert find_images([inside[1], str(below / "*.jpg")]) == [inside[1]]
    (tmp_path / "odd[1].jpg").write_bytes(b"")
    assert find_images([str(tmp_path / "odd[1].jpg")]) == [str(tmp_path / "odd[1].jpg")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no image files"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match=r"\*\.tiff' matches no file; quote the pattern"):
        find_images([str(tmp_path / "*.tiff")])


def test_json_lines_and_csv_contain_the_predictions(folder, images, tmp_path, capsys):
    missing = str(tmp_path / "missing.png")
    results = list(predict_images(folder, [missing, *images[:2]], top_k=2))
    capsys.readouterr()
    assert write_predictions(results, tmp_path / "out.jsonl") == 1
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == results
    assert capsys.readouterr().err == f"error: {missing}: no such file\n"
    assert write_predictions(results, tmp_path / "out.csv") == 1
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "error", "label_1", "score_1", "label_2", "score_2"]
    assert rows[0] == [missing, f"{missing}: no such file", "", "", "", ""]
    for row, result in zip(rows[1:], results[1:], strict=True):
        predictions = [{"label": row[place], "score": float(row[place + 1])} for place in (2, 4)]
        assert {"image": row[0], "predictions": predictions} == result
    assert write_predictions([], tmp_path / "none.jsonl") == 0


def test_the_command_writes_a_file_and_counts_unreadable_images(folder, images, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(Path(images[0]).read_bytes())
    command = ["predict", "--model", str(folder), "--device", "cpu", str(tmp_path / "*.jpg")]
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 0
    assert capsys.readouterr().out == f"1 of 1 image predicted: {tmp_path / 'out.csv'}\n"
    (tmp_path / "b.jpg").write_text("no image")
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 1
    assert capsys.readouterr().out == f"1 of 2 images predicted: {tmp_path / 'out.csv'}\n"
    for name, message in (("out.txt", "must end in .jsonl or .csv"), ("no/out.csv", "cannot be written: No such file")):
        assert main([*command, "--output", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_spreadsheet_runs_no_name_of_a_class_or_file(tmp_path):
    predictions = [{"label": "=1+1", "score": 0.75}, {"label": "-x", "score": 1e-07}]
    results = [
        {"image": "@x.jpg", "predictions": predictions, "probabilities": {"-x": 1e-07, "=1+1": 0.75, "\tt": -1.0}},
        {"image": "+y.jpg", "error": "@y: no such file"},
        {"image": "a=b.jpg", "predictions": predictions, "probabilities": {"-x": 1.0, "=1+1": 0.0, "\tt": 0.0}},
    ]
    write_predictions(results, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "error", "label_1", "score_1", "label_2", "score_2", "'-x", "'=1+1", "'\tt"],
        ["'@x.jpg", "", "'=1+1", "0.75", "'-x", "1e-07", "1e-07", "0.75", "-1.0"],
        ["'+y.jpg", "'@y: no such file", "", "", "", "", "", "", ""],
        ["a=b.jpg", "", "'=1+1", "0.75", "'-x", "1e-07", "1.0", "0.0", "0.0"],
    ]
    assert [csv_cell(value) for value in ("\rx", "x-", "", None, -1)] == ["'\rx", "x-", "", None, -1]


def test_the_probability_of_every_class_is_a_column(folder, images, tmp_path, capsys):
    command = ["predict", "--model", str(folder), "--top_k", "1", "--probabilities", "all", images[0], images[1]]
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = list(predict_images(folder, images[:2], top_k=7))
    for row, result in zip(rows, expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in result["predictions"]}
        assert {name: float(row[name]) for name in NAMES} == pytest.approx(scores)
        assert row["label_1"] == result["predictions"][0]["label"]
    assert list(rows[0]) == ["image", "error", "label_1", "score_1", *NAMES]
    assert main(command) == 2
    assert "probabilities: those of all classes go to a file; name it with --output" in capsys.readouterr().err


def test_below_a_score_the_label_is_left_out_and_the_score_kept(folder, images, tmp_path, capsys):
    results = list(predict_images(folder, images, top_k=2))
    best = [result["predictions"][0]["score"] for result in results]
    ordered = sorted(best)
    limit = (ordered[1] + ordered[2]) / 2  # two images are below
    command = ["predict", "--model", str(folder), "--top_k=2", *images]
    limited = [*command, f"--min_score={limit}"]
    expected = f"2 of 7 images without a label: their best score is below {limit:g}\n"
    assert main([*limited, "--output", str(tmp_path / "out.jsonl"), "--probabilities=all"]) == 0
    assert expected in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, result, score in zip(lines, results, best, strict=True):
        labels = [None, None] if score < limit else [of["label"] for of in result["predictions"]]
        assert [of["label"] for of in line["predictions"]] == labels
        assert line["predictions"][0]["score"] == pytest.approx(score)
        assert line.get("abstained", False) == (score < limit)
        assert len(line["probabilities"]) == 7
    assert main([*limited, "--output", str(tmp_path / "out.csv"), "--sort_into", str(tmp_path / "sorted")]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        unlabeled = [row for row in csv.DictReader(file) if row["label_1"] == ""]
    assert [float(row["score_1"]) for row in unlabeled] == pytest.approx([score for score in best if score < limit])
    assert len(list((tmp_path / "sorted" / "uncertain").iterdir())) == 2
    assert "5 images copied into" in capsys.readouterr().out
    assert main(limited) == 0
    output = capsys.readouterr().out
    assert output.count("(no label: below --min_score)") == 2
    assert expected in output
    assert main([*command, "--min_score=1.5"]) == 2
    assert "min_score: 1.5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="min_score: -1; a probability from 0 to 1 is needed"):
        abstain_below([], -1)


def test_how_to_calibrate_is_said_where_the_scores_are_far_off(folder, images, tmp_path, capsys):
    model = tmp_path / "my model"
    shutil.copytree(folder, model)
    (model / "evaluation").mkdir()
    command = ["predict", "--model", str(model), images[0]]
    for results, said in (({"ece": 9.9}, False), ({"ece": 23.84}, True), ({"ece": 23.84, "adjustment": {}}, True)):
        (model / "evaluation" / "results.json").write_text(json.dumps(results))
        assert main(command) == 0
        error = (
            "scores and accuracy of this model differ by 23.8 points on average (ECE); to calibrate it: livt adjust "
            f"--model '{model}' --temperature fit --dataset DATASET --output_dir calibrated\n"
        )
        assert capsys.readouterr().err == (error if said else "")
    (model / "results.json").write_text(json.dumps({"ece": 50.0, "adjustment": {"temperature": 2.0}}))
    assert calibration_advice(model) is None  # calibrated already; the folder's own results come first
    (model / "results.json").write_text("{")
    assert calibration_advice(model) is None
    assert calibration_advice("org/name") is None
