"""Differences between the rows of a comparison, from the predictions that lie beside the runs."""

import numpy as np
import pytest

from livt_hf.data.table import image_column, image_dataset
from livt_hf.evaluation.prediction_file import write_predictions
from livt_hf.files import PREDICTIONS_FILE
from livt_hf.metrics import paired_differences
from livt_hf.reporting.blocks import to_markdown
from livt_hf.reporting.comparison_report import comparison_sections
from livt_hf.reporting.comparison_table import comparison_table, latex_table, summarize
from livt_hf.training.significance import with_differences

COUNTS = {"cat": 500, "dog": 60, "emu": 5}
GROUPS = {"many": 100, "few": 20, "by": "count"}
LABELS = np.repeat([0, 1, 2], 40)
RIGHT = {"ce": 0.3, "bal_ce": 0.8, "bce": 0.3}


def answers(loss, seed, labels=LABELS):
    """Predictions, and confidences that lie further from their accuracy for CE."""
    correct = np.random.default_rng(seed).random(len(labels)) < RIGHT[loss]
    return {"predictions": np.where(correct, labels, (labels + 1) % 3), "confidences": np.full(len(labels), 0.6)}


def outcome(loss, seed, folder, labels=LABELS):
    """A run, whose predictions are written beside it."""
    found, name = answers(loss, seed, labels), f"{loss}-seed{seed}"
    paths = image_column(paths=[f"/photos/{number}.jpg" for number in range(len(labels))])
    split = image_dataset(paths, labels, list(COUNTS), 0)
    predicted = {"labels": labels, **found, "true_probabilities": found["confidences"]}
    write_predictions(folder / name, predicted, split, list(COUNTS))
    figures = dict.fromkeys(("many", "medium", "few", "macro_accuracy", "ece", "mce"), 50.0)
    figures["accuracy"] = 100 * float((found["predictions"] == labels).mean())
    return {"name": name, "loss": loss, "seed": seed, "pretraining": "MAE", "parameters": 5_000_000, **figures}


@pytest.fixture
def runs(tmp_path):
    return [outcome(loss, seed, tmp_path) for loss in RIGHT for seed in (0, 1)]


def differences(runs, folder):
    return with_differences(summarize(runs), runs, folder, COUNTS, GROUPS)


def test_each_row_is_compared_with_the_first_over_the_seeds_of_both(runs, tmp_path):
    (ce, bal_ce, bce), how = differences(runs, tmp_path)
    leaders = how.pop("leaders")
    assert how == {"baseline": 0, "level": 95.0, "resamples": 1000, "seed": 0}
    assert ce["difference"] is None
    assert "not_compared" not in ce
    gain = bal_ce["accuracy"]["mean"] - ce["accuracy"]["mean"]
    assert bal_ce["difference"]["accuracy"]["difference"] == pytest.approx(gain)
    assert bal_ce["difference"]["accuracy"]["significant"] is True
    # The same draws of a seed make CE and BCE right on the same images
    assert bce["difference"]["accuracy"] == {"difference": 0.0, "interval": [0.0, 0.0], "significant": False}
    models, baseline = ([answers(loss, seed) for seed in (0, 1)] for loss in ("bal_ce", "ce"))
    found = paired_differences(LABELS, models, baseline, COUNTS, GROUPS)
    assert bal_ce["difference"] == found
    # By the means of the rows, all 50, the first row leads the second
    backward = paired_differences(LABELS, baseline, models, COUNTS, GROUPS)
    assert leaders == {measure: backward[measure] for measure in ("macro_accuracy", "few")}


def test_tables_mark_what_differs_and_say_from_what(runs, tmp_path):
    rows, how = differences(runs, tmp_path)
    marked = sum(of["significant"] for of in rows[1]["difference"].values())
    assert marked >= 5
    lines = comparison_table(rows).splitlines()
    shown = marked if "Macro" in lines[0] else marked - 1
    assert lines[3].count("†") == shown
    assert "†" not in lines[2] + lines[4]
    assert latex_table(rows).count(r"$^{\dagger}$") == shown
    comparison = {
        "dataset": "photos",
        "split": "test",
        "images": 120,
        "class_counts": COUNTS,
        "command": "livt compare",
        "groups": {"definition": GROUPS},
        "rows": rows,
        "differences": how,
        "versions": {},
        "runs": [{**run, "post_hoc": None} for run in runs],
        "hardware": {"device": "cpu", "cpu": "Chip", "cores": 2},
    }
    report = to_markdown(*comparison_sections(comparison, {}))
    assert "†: differs from CE, the first row, beyond the 95 % interval of a paired bootstrap" in report
    of = rows[1]["difference"]["accuracy"]
    low, high = of["interval"]
    assert f"{of['difference']:+.1f} ({low:+.1f} to {high:+.1f}) †" in report
    assert "## Differences to CE" in report


def test_runs_without_predictions_have_a_dash_and_a_reason(runs, tmp_path):
    (tmp_path / "bal_ce-seed1" / PREDICTIONS_FILE).unlink()
    runs[5]["accuracy"] += 1.0  # results and predictions of different evaluations
    rows, how = differences(runs, tmp_path)
    assert [row["difference"] for row in rows] == [None] * 3
    assert how["leaders"] == {}
    reason = "predictions.parquet, from which rows are compared, is missing or outdated in a run of this row"
    assert [row.get("not_compared") for row in rows] == [None, reason, reason]
    (tmp_path / "ce-seed0" / PREDICTIONS_FILE).unlink()
    rows, _ = differences(runs, tmp_path)
    assert rows[1]["not_compared"].endswith("in a run of the first row")
    assert "†" not in comparison_table(rows)


def test_runs_on_other_images_are_not_compared(tmp_path):
    runs = [outcome("ce", 0, tmp_path), outcome("bce", 1, tmp_path, LABELS[::-1].copy())]
    rows, _ = differences(runs, tmp_path)
    assert rows[1]["not_compared"] == "the runs were evaluated on other images"
