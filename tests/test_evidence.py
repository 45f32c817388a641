"""The page of evidence and the README's table are what the measured comparisons say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("evidence", ROOT / "scripts" / "evidence.py")
evidence = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evidence)


def test_the_page_is_what_the_comparisons_say():
    assert (ROOT / "model_cards" / "EVIDENCE.md").read_text(encoding="utf-8") == evidence.evidence_page()


def test_the_readme_holds_the_table_of_the_comparisons():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == evidence.with_section(readme, evidence.readme_section())
    assert "| Bal-BCE |" in evidence.readme_section()


def run(name, loss, pretrained, accuracy, few, seed=0):
    figures = {"many": 90.0, "medium": 50.0, "few": few, "accuracy": accuracy, "macro_accuracy": accuracy}
    figures |= {"ece": 5.0, "mce": 9.0}
    kind = {"name": name, "loss": loss, "pretraining": "MAE" if pretrained else "none", "pretrained": pretrained}
    return {**kind, "post_hoc": None, "parameters": 1_000_000, "seed": seed, **figures}


@pytest.fixture
def comparisons(tmp_path):
    folder = tmp_path / "cifar10-lt-100"
    folder.mkdir(parents=True)
    common = {
        "class_counts": {"cat": 50, "dog": 5},
        "images": 1234,
        "hardware": {"device": "cpu", "cpu": "a CPU", "cores": 2},
        "versions": {"torch": "2", "transformers": "5"},
    }
    first = [run("ce-0", "ce", "mae-tail", 60.0, 20.0), run("ce-1", "ce", "mae-tail", 62.0, 22.0, seed=1)]
    first.append(run("bce-0", "bce", "mae-tail", 50.0, 1.5))
    second = [first[0], run("ce-0-none", "ce", None, 40.0, 5.0), run("ce-0-bal", "ce", "mae-bal", 61.5, 24.0)]
    for name, runs in (("losses", first), ("starts", second)):
        (folder / f"{name}.json").write_text(json.dumps({"command": f"livt compare {name}", "runs": runs, **common}))
    (tmp_path / "notes.md").write_text("A note.\n")
    return tmp_path


def test_runs_of_several_commands_become_one_table_and_count_once(comparisons):
    page = evidence.evidence_page(comparisons)
    assert "| 1.00M | mae-tail | CE | **90.0** ± 0.0 | **50.0** ± 0.0 | 21.0 ± 1.4 | 61.0 ± 1.4 |" in page
    assert "| 1.00M | none | CE |" in page
    assert "| 1.00M | mae-bal | CE | **90.0** | **50.0** | **24.0** | **61.5** |" in page
    assert "\nlivt compare losses\nlivt compare starts\n" in page
    assert "55 training images of 2 classes, 50 to 5 each; tested on 1,234 images" in page
    assert "A note." in page


def test_the_statements_are_differences_of_the_rows(comparisons):
    lines = evidence.statements_table({"cifar10-lt-100": evidence.rows_of(comparisons / "cifar10-lt-100")}).splitlines()
    table = {cells[1].strip(): cells[3].strip() for cells in (line.split("|") for line in lines[2:])}
    assert table["BCE loses the tail: few-shot accuracy, BCE less CE"] == "-19.5"  # 1.5 - (20 + 22) / 2
    assert table["Pretraining over none, CE, all"] == "+21.0"  # 61 - 40
    assert table["Pretraining on balanced images over the tail's, CE, all"] == "+0.5"  # 61.5 - 61
    assert table["Bal-BCE over BCE, all"] == "–"  # not measured


def test_outputs_are_added_and_others_refused(comparisons, tmp_path):
    compared, pretrained = tmp_path / "more", tmp_path / "mae-more"
    compared.mkdir()
    pretrained.mkdir()
    (compared / "results.json").write_text("{}")
    arguments = {"mask_ratio": 0.75, "epochs": 3.0, "dataset": "digits", "data_dir": "/home/someone/photos"}
    record = {"arguments": arguments, "steps": 30, "versions": {}}
    (pretrained / "run.json").write_text(json.dumps(record))
    (pretrained / "metrics.jsonl").write_text('{"step": 0, "probe_accuracy": 9}\n{"loss": 1.25}\n{"loss": 0.5}\n')
    folder = comparisons / "digits"
    evidence.add(folder, compared)
    evidence.add(folder, pretrained)
    assert (folder / "more.json").read_text() == "{}"
    added = json.loads((folder / "pretraining.json").read_text())["mae-more"]
    assert (added["first_loss"], added["loss"], added["steps"]) == (1.25, 0.5, 30)
    assert "someone" not in added["command"]
    with pytest.raises(ValueError, match="it is no output folder of a finished"):
        evidence.add(folder, tmp_path)
