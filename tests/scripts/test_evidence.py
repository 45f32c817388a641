"""EVIDENCE.md and the README's table are generated from the measured comparisons."""

import importlib.util
import json

import pytest

from helpers.paths import ROOT

spec = importlib.util.spec_from_file_location("evidence", ROOT / "scripts" / "evidence.py")
evidence = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evidence)


def test_the_page_is_up_to_date():
    assert (ROOT / "model_cards" / "EVIDENCE.md").read_text(encoding="utf-8") == evidence.evidence_page()


def test_the_readme_has_the_current_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == evidence.with_section(readme, evidence.readme_section())
    assert "| Bal-BCE |" in evidence.readme_section()


def run(name, loss, pretrained, accuracy, few, seed=0):
    figures = {"many": 90.0, "medium": 50.0, "few": few, "accuracy": accuracy, "macro_accuracy": accuracy}
    figures |= {"ece": 5.0, "mce": 9.0}
    kind = {"name": name, "loss": loss, "pretraining": "MAE" if pretrained else "none", "pretrained": pretrained}
    return {**kind, "post_hoc": None, "parameters": 1_000_000, "seed": seed, "curve": None, **figures}


@pytest.fixture
def comparisons(tmp_path):
    folder = tmp_path / "cifar10-lt-100"
    folder.mkdir(parents=True)
    common = {
        "class_counts": {"cat": 50, "dog": 5},
        "images": 1234,
        "groups": {"definition": {"many": 20, "few": 10, "by": "count"}, "sizes": {"many": 1, "medium": 0, "few": 1}},
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
    assert (
        "55 training images in 2 classes, 50 to 5 per class. Many-, medium- and few-shot: more than 20, 10 to 20, "
        in page
    )
    assert "fewer than 10 training images (1 / 0 / 1 classes). Evaluated on 1,234 images after the last epoch." in page
    assert "A note." in page


def test_the_claims_are_differences_of_the_rows(comparisons):
    lines = evidence.claims_table({"cifar10-lt-100": evidence.rows_of(comparisons / "cifar10-lt-100")}).splitlines()
    table = {cells[1].strip(): cells[3].strip() for cells in (line.split("|") for line in lines[2:])}
    assert table["BCE fails on the tail: few-shot, BCE minus CE"] == "-19.5"  # 1.5 - (20 + 22) / 2
    assert table["Pretraining minus none, CE, all"] == "+21.0"  # 61 - 40
    assert table["Pretraining on balanced minus long-tailed images, CE, all"] == "+0.5"  # 61.5 - 61
    assert table["Bal-BCE minus BCE, all"] == "–"  # not measured


def test_the_pretraining_on_the_tail_is_what_others_are_compared_with(comparisons):
    folder = comparisons / "cifar10-lt-100"
    (folder / "starts.json").rename(folder / "balanced.json")  # read first
    rows = evidence.rows_of(folder)
    assert [row["pretraining"] for row in rows] == ["mae-tail", "mae-tail", "mae-bal", "none"]
    assert evidence.gain_of_balance(rows) == 0.5  # 61.5 - 61


def test_sizes_are_listed_beside_the_papers_from_small_to_large():
    rows = [
        {**run("a", "ce", "mae-b", 44.0, 9.0), "parameters": 85_800_000},
        {**run("b", "ce", "mae-ti", 30.0, 9.0), "parameters": 5_500_000},
        {**run("c", "bal_bce", "mae-ti", 41.0, 9.0), "parameters": 5_500_000},
    ]
    table = evidence.size_table({"grocery-sizes": evidence.summarize(rows)}).splitlines()
    assert table[2].startswith("| ImageNet-LT (paper) | 5.7 / 22 / 86 | 37.0 / 49.5 / 54.5 |")
    assert table[3] == "| Grocery Store, model sizes | 5.5 / 85.8 | 30.0 / 44.0 | – / – | 41.0 / – |"


def test_outputs_are_added_and_others_refused(comparisons, tmp_path):
    compared, pretrained = tmp_path / "more", tmp_path / "mae-more"
    compared.mkdir()
    pretrained.mkdir()
    comparison = json.loads((comparisons / "cifar10-lt-100" / "losses.json").read_text())
    for one in comparison["runs"]:
        one["curve"] = {"split": "test", "epoch": [1, 2], "accuracy": [30.0, one["accuracy"]]}
    (compared / "results.json").write_text(json.dumps(comparison))
    arguments = {"mask_ratio": 0.75, "epochs": 3.0, "dataset": "digits", "data_dir": "/home/someone/photos"}
    command = "livt pretrain --dataset digits --data_dir photos --epochs 3"
    record = {"arguments": arguments, "steps": 30, "versions": {}, "command": command}
    (pretrained / "run.json").write_text(json.dumps(record))
    (pretrained / "metrics.jsonl").write_text('{"step": 0, "probe_accuracy": 9}\n{"loss": 1.25}\n{"loss": 0.5}\n')
    folder = comparisons / "digits"
    evidence.add(folder, compared)
    evidence.add(folder, pretrained)
    assert json.loads((folder / "more.json").read_text()) == comparison
    assert {file.name for file in folder.glob("*.png")} == {"accuracy.png", "convergence.png"}
    added = json.loads((folder / "pretraining.json").read_text())["mae-more"]
    assert (added["first_loss"], added["loss"], added["steps"]) == (1.25, 0.5, 30)
    assert added["command"] == command
    with pytest.raises(ValueError, match="not the output folder of a finished"):
        evidence.add(folder, tmp_path)


def test_tuning_runs_are_listed_by_their_differences_from_the_baseline(comparisons, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = {"many": 60.0, "medium": 40.0, "few": 20.0, "split": "validation", "images": 9}
    figures |= {
        "hardware": {"device": "cpu", "cpu": "a CPU", "cores": 2},
        "versions": {"torch": "2", "transformers": "5"},
    }
    runs = {"base": ("mae", {}, 44.0), "rate": ("mae", {"base_lr": 1e-3}, 41.0), "masks": ("mae-50", {}, 46.0)}
    runs["smooth"] = ("mae", {"label_smoothing": 0.1}, 43.0)
    for name, mask_ratio in (("mae", 0.75), ("mae-50", 0.5)):
        (tmp_path / name).mkdir()
        options = "" if mask_ratio == 0.75 else f" --mask_ratio {mask_ratio}"
        command = f"livt pretrain --dataset tune --output_dir {name}{options}"
        record = {"steps": 1, "arguments": {"mask_ratio": mask_ratio}, "command": command}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    for name, (start, options, accuracy) in runs.items():
        (tmp_path / name).mkdir()
        values = {"base_lr": 2e-3, "label_smoothing": 0.2, "pretrained": start} | options
        command = f"livt finetune --dataset tune --output_dir {name}"
        command += "".join(f" --{option} {value:g}" for option, value in values.items() if option != "pretrained")
        command = command.replace(" --label_smoothing 0.1", "")  # its default
        (tmp_path / name / "run.json").write_text(json.dumps({"steps": 1, "arguments": values, "command": command}))
        (tmp_path / name / "results.json").write_text(json.dumps({**figures, "accuracy": accuracy}))
        evidence.add(comparisons / "held-out", tmp_path / name)
    (comparisons / "notes.md").write_text("Tried:\n\n<!-- held-out -->\n")
    page = evidence.evidence_page(comparisons)
    assert "| baseline (commands below) | 60.0 | 40.0 | 20.0 | 44.0 |" in page
    assert "| finetune: `--base_lr 0.001` | 60.0 | 40.0 | 20.0 | 41.0 |" in page
    assert "| pretrain: `--mask_ratio 0.5` | 60.0 | 40.0 | 20.0 | 46.0 |" in page
    assert "| finetune: `--label_smoothing 0.1` |" in page
    eager = evidence.changed("livt finetune --epochs 4", "livt finetune --epochs 4 --torch_compile True", "finetune")
    assert eager == "finetune: `--torch_compile (default)`"
    assert "livt finetune --dataset tune --output_dir base --base_lr 0.002" in page
    with pytest.raises(ValueError, match="not the output folder of a finished `livt finetune`"):
        evidence.add(comparisons / "held-out", tmp_path / "mae")


def light_run(folder, loss, seed, macro, adapter="lora", **more):
    folder.mkdir(parents=True)
    arguments = {"stage": "all", "adapter": adapter, "classifier_init": "random", "pretrained": "mae"}
    record = {
        "steps": more.pop("steps", 33),
        "command": f"livt finetune --loss {loss}",
        "arguments": {**arguments, **more.pop("given", {})},
    }
    figures = {name: macro + place for place, name in enumerate(("macro_accuracy", "many", "medium", "few", "ece"))}
    hardware, versions = {"device": "cpu", "cpu": "Chip", "cores": 2}, {"torch": "2", "transformers": "5"}
    results = {
        **figures,
        "loss": loss,
        "seed": seed,
        "images": 100,
        "parameters": 10,
        "trained_parameters": 4,
        "groups": {},
        "intervals": {"macro_accuracy": [macro - 1.5, macro + 2]},
        "versions": versions,
        "hardware": hardware,
        **more,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_light_fine_tuning_is_a_table_of_means_and_widest_intervals(tmp_path):
    page = tmp_path / "comparisons" / "light"
    evidence.add(page, light_run(tmp_path / "a", "bal_ce", 0, 40.0))
    evidence.add(page, light_run(tmp_path / "b", "bal_ce", 1, 44.0))
    evidence.add(page, light_run(tmp_path / "c", "ce", 0, 30.0, adapter="none"))
    means = {"given": {"classifier_init": "class_mean"}}
    evidence.add(page, light_run(tmp_path / "d", "bal_bce", 0, 41.0, **means))
    knn = {"accuracy": 20.0, "many": 21.0, "medium": 22.0, "few": 23.0}
    evidence.add(page, light_run(tmp_path / "e", "ce", 0, 35.0, given={"stage": "probe"}, steps=0, knn=knn))
    (page / "notes.md").write_text("What was done.\n")
    evidence.add(page, light_run(tmp_path / "f", "bal_ce", 0, 50.0, steps=99))
    heading, notes, table, commands = evidence.light_evidence.light_section(page)
    assert (heading, notes) == ("## Light fine-tuning", "What was done.")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows == [
        ["All weights", "33", "CE", "4", "1", "30.0 (28.5–32.0)", "31.0", "32.0", "33.0", "34.0"],
        ["LoRA", "33", "Bal-CE", "4", "2", "42.0 (38.5–46.0)", "43.0", "44.0", "45.0", "46.0"],
        ["LoRA", "99", "Bal-CE", "4", "1", "50.0 (48.5–52.0)", "51.0", "52.0", "53.0", "54.0"],
        ["LoRA, class means", "33", "Bal-BCE", "4", "1", "41.0 (39.5–43.0)", "42.0", "43.0", "44.0", "45.0"],
        ["Linear probe", "–", "CE", "4", "1", "35.0 (33.5–37.0)", "36.0", "37.0", "38.0", "39.0"],
        ["k-NN", "–", "–", "–", "1", "20.0", "21.0", "22.0", "23.0", "–"],
    ]
    assert commands.count("livt finetune --loss") == 6
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="not the output folder of a finished"):
        evidence.add(page, tmp_path / "nothing")
