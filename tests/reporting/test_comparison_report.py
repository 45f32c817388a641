"""The files of a comparison, whole: table.md, table.tex and report.md."""

import pytest

from helpers.paths import FIXTURES
from livt_hf.reporting.comparison_report import write_comparison
from livt_hf.reporting.comparison_table import summarize


def run(loss, seed, few, pretraining="mae_tail", parameters=5_500_000, post_hoc=None):
    """Results of one run, as in `livt compare`'s results.json."""
    accuracy = 40.0 + few / 4
    return {
        "name": f"{loss}-seed{seed}-{pretraining}",
        "loss": loss,
        "seed": seed,
        "pretraining": pretraining,
        "parameters": parameters,
        "post_hoc": post_hoc,
        "many": 90.0,
        "medium": None if loss == "bce" else 50.0,
        "few": few,
        "accuracy": accuracy,
        "macro_accuracy": accuracy + 1.25,
        "ece": 5.0 + seed,
        "mce": 9.0,
        "curve": {"split": "test", "epoch": [1.0, 2.0], "accuracy": [30.0, accuracy]},
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    runs = [
        run("ce", 0, 20.0),
        run("ce", 1, 22.5),
        run("ce", 0, 28.0, post_hoc="logit_adjustment"),
        run("ce", 0, 26.0, post_hoc="tau_norm"),
        run("bce", 0, 3.0),
        run("bal_bce", 0, 45.04),
        run("bal_bce", 1, 44.0, pretraining="none"),
        run("bal_bce", 0, 50.0, parameters=21_700_000),
    ]
    comparison = {
        "dataset": "photos | of <b>things</b>",
        "split": "test",
        "images": 1234,
        "class_counts": {"cat": 1500, "dog": 55, "lynx": 5},
        "groups": {"definition": {"many": 100, "few": 20, "by": "count"}, "sizes": {"many": 1, "medium": 1, "few": 1}},
        "rows": summarize(runs),
        "runs": runs,
        "command": "livt compare --losses ce,bce,bal_bce",
        "versions": {"torch": "2.15.0"},
        "hardware": {"device": "cpu", "cpu": "Chip", "cores": 2},
    }
    write_comparison(folder, comparison)
    return folder


@pytest.mark.parametrize("name", ["table.md", "table.tex", "report.md"])
def test_whole_files(written, name):
    assert (written / name).read_text(encoding="utf-8") == (FIXTURES / "comparison" / name).read_text(encoding="utf-8")


def test_the_charts_in_the_report_exist(written):
    shown = ["accuracy.png", "convergence.png", "model_size.png"]
    assert sorted(file.name for file in written.glob("*.png")) == shown
    assert all(f"]({name})" in (written / "report.md").read_text() for name in shown)


def test_the_page_has_the_same_content_and_its_pictures_inside(written):
    page = (written / "report.html").read_text(encoding="utf-8")
    assert (
        '<h1>Loss comparison on photos | of &lt;b&gt;things&lt;/b&gt;</h1><p class="lead">Over all classes Bal-BCE ('
        in page
    )
    assert page.count("<svg") == 6  # three charts, each for wide and for narrow pages
    assert "best on few-shot: Bal-BCE (mae_tail, 21.7M)" in page
    assert "<td><b>50.0</b></td>" in page.replace(' class="number"', "")
    assert "<td>21.2 ± 1.8</td>" in page.replace(' class="number"', "")
