"""The quickstart from end to end, with recipes cut to a few steps: what it writes, and that it can be repeated."""

import json
import re
import shutil

import pytest
import yaml
from transformers import AutoImageProcessor, AutoModelForImageClassification

from livt_hf import cli
from livt_hf.config import parsing
from livt_hf.reporting.comparison_table import comparison_table, summarize
from livt_hf.training.quickstart import RUNS, closing_words, quickstart

pytestmark = pytest.mark.usefixtures("unrendered_reports")


@pytest.fixture
def short_recipes(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    shutil.copytree(parsing.RECIPES, folder)
    for file in folder.glob("*/digits.yaml"):
        values = yaml.safe_load(file.read_text())
        values |= {"epochs": 2, "warmup_epochs": 1, "num_workers": 0, "num_hidden_layers": 2}
        file.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(parsing, "RECIPES", folder)


def test_it_writes_report_results_pictures_and_a_hub_ready_model(tmp_path, short_recipes, capsys):
    output = tmp_path / "out"
    assert cli.main(["quickstart", "--output_dir", str(output)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert [(entry["loss"], entry["pretrained"] is not None) for entry in results] == list(RUNS)
    named = [{**entry, "pretraining": "MAE" if entry["pretrained"] else "none"} for entry in results]
    table = comparison_table(summarize(named))
    assert table in printed
    assert closing_words(output) in printed
    for file in ("report.html", "livt-digits/report.html", "runs/pretrain"):
        assert str(output / file) in closing_words(output)
        assert (output / file).exists()
    assert table in (output / "report.md").read_text()
    for picture in ("comparison.png", "reconstructions.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in (output / "report.md").read_text()
    model_dir = output / "livt-digits"
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results.json", "report.md"}
    names |= {"class_frequency.png", "reliability.png", "predictions.png", "hardest.png", "report.html"}
    names |= {"predictions.parquet", "selective.png", "per_class.csv", "confusion.csv", "confusion.png"}
    assert names == {path.name for path in model_dir.iterdir()}
    model = AutoModelForImageClassification.from_pretrained(model_dir)
    assert model.config.loss == "bal_bce"
    assert AutoImageProcessor.from_pretrained(model_dir).crop_size.height == 8
    published = {**results[RUNS.index(("bal_bce", True))], "model": "livt-digits"}
    assert json.loads((model_dir / "results.json").read_text()) == published
    for page in (output / "report.html", model_dir / "report.html"):  # no class without a style: pictures fit the page
        style, body = page.read_text().split("</style>", 1)
        used = {name for names in re.findall(r'class="([^"]+)"', body) for name in names.split()}
        assert {name for name in used if f".{name}" not in style} <= {"all", "plain", "photo"}, page
    assert "<h1>Evaluation of livt-digits</h1>" in (model_dir / "report.html").read_text()

    assert cli.main(["quickstart", "--output_dir", str(output)]) == 2
    assert "contains a finished quickstart" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_quickstart_resumes(tmp_path, short_recipes, capsys):
    output = tmp_path / "out"
    first = quickstart(output)
    for path in (output / "results.json", output / "runs" / "bal_ce" / "run.json"):
        path.unlink()
    capsys.readouterr()
    again = quickstart(output)
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 5  # all but the run that was not finished
    assert [entry["accuracy"] for entry in again] == [entry["accuracy"] for entry in first]
