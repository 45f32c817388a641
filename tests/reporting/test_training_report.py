"""The report of a training run that was not evaluated: full text, escaped names, charts in the page."""

import json

import pytest

from helpers.paths import FIXTURES
from helpers.results import naughty_results
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.config.parsing import parse_arguments
from livt_hf.reporting.card import loss_sentence
from livt_hf.reporting.training_report import write_training_report
from livt_hf.training.record import RunOptions


@pytest.fixture
def folder(tmp_path):
    args, _ = parse_arguments(FinetuneArguments, ["--dataset", "/home/someone/photos", "--max_steps", "40"])
    (tmp_path / "run.json").write_text(json.dumps(RunOptions(args).record(40)))
    lines = [{"step": 20, "epoch": 0.4878, "loss": 1.5}, {"step": 40, "epoch": 12.0, "loss": 0.81077}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_whole_report(folder):
    results = naughty_results()
    kept = ("model", "dataset", "class_counts", "coverage", "command", "versions", "hardware")
    write_training_report(folder, {name: results[name] for name in kept} | {"dataset": "/home/someone/a|b"})
    assert (folder / "report.md").read_text() == (FIXTURES / "training_report.md").read_text()
    page = (folder / "report.html").read_text()
    assert "This model has not been evaluated: its accuracy is unknown." in page
    assert "<td>a|b</td>" in page
    assert "<td><code>base_lr</code></td>" in page
    assert "<script>alert" not in page
    assert page.count("<svg") == 2  # for wide and for narrow pages
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_log_and_record_what_is_known_is_reported(tmp_path):
    results = naughty_results()
    kept = {name: results[name] for name in ("model", "dataset", "command", "versions", "hardware")}
    write_training_report(tmp_path, kept, "It has no accuracy.")
    text = (tmp_path / "report.md").read_text()
    assert "Trained on my&#124;images. It has no accuracy." in text
    assert "Training loss" not in text
    assert "## Training setup" in text


EPOCHS = [(0.4878, "0.49"), (3.0, "3"), (9.54, "9.5"), (12.0, "12"), (799.9, "800")]


@pytest.mark.parametrize(("epoch", "shown"), EPOCHS)
def test_epochs_are_rounded(epoch, shown):
    entry = {"loss": 1.0, "epoch": epoch}
    assert loss_sentence([entry]) == f"Training loss: 1.0000 at epoch {shown}."
    assert loss_sentence([entry, entry, {}, entry | {"loss": 0.5}]) == (
        f"Training loss: 1.0000 at epoch {shown}, 0.5000 at epoch {shown}."
    )
