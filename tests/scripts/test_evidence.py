"""Records of runs are added, read, and become EVIDENCE.md."""

import json

import pytest

from documents.figure import drawn, evidence_figure
from documents.notes import filled
from documents.page import evidence_page
from documents.records import BALANCED, TAIL, RunSet, add, difference_of, mean_of, read_sets, role, select


def run(name, loss, pretrained, accuracy, few, seed=0, **more):
    figures = {"many": 90.0, "medium": 50.0, "few": few, "accuracy": accuracy, "macro_accuracy": accuracy}
    figures |= {"ece": 5.0, "mce": 9.0}
    kind = {"name": name, "loss": loss, "pretraining": "MAE" if pretrained else "none", "pretrained": pretrained}
    return {**kind, "post_hoc": None, "parameters": 1_000_000, "seed": seed, "curve": None, **figures, **more}


COMMON = {
    "class_counts": {"cat": 50, "cow": 12, "dog": 5},
    "images": 1200,
    "groups": {"definition": {"many": 20, "few": 10, "by": "count"}, "sizes": {"many": 1, "medium": 1, "few": 1}},
    "hardware": {"device": "cpu", "cpu": "a CPU", "cores": 2},
    "versions": {"torch": "2", "transformers": "5"},
}


@pytest.fixture
def comparisons(tmp_path):
    folder = tmp_path / "cifar10-lt-100"
    folder.mkdir(parents=True)
    seeds = (60.0, 62.0, 64.0)
    first = [run(f"ce-{seed}", "ce", "mae-tail", seeds[seed], 20.0 + seed, seed) for seed in range(3)]
    first.append(run("bce-0", "bce", "mae-tail", 50.0, 1.5))
    second = [first[0], run("ce-0-none", "ce", None, 40.0, 5.0), run("ce-0-bal", "ce", "mae-bal", 61.5, 24.0)]
    for name, runs in (("losses", first), ("starts", second)):
        (folder / f"{name}.json").write_text(json.dumps({"command": f"livt compare {name}", "runs": runs, **COMMON}))
    entry = {"title": "CIFAR", "short": "C", "about": "Small images.", "panel": True}
    (tmp_path / "sets.json").write_text(json.dumps({"cifar10-lt-100": entry, "empty": {**entry, "panel": False}}))
    (tmp_path / "notes.md").write_text("A note: {cifar10-lt-100: ce - ce@none, all} points.\n")
    return tmp_path


def test_runs_of_several_commands_become_one_table_and_count_once(comparisons):
    page = evidence_page(comparisons)
    # All: 60, 62, 64: t * 2 / sqrt(3) = 4.97; about 62 % of 1,200 images: 2.74; together 5.67
    assert "| 1.00M | MAE | CE | **90.0** ± 3.0 | **50.0** ± 4.9 | 21.0 ± 4.7 | **62.0** ± 5.7 |" in page
    assert "| 1.00M | MAE, balanced images | CE | **90.0** | **50.0** | **24.0** | 61.5 |" in page
    assert "| 1.00M | none | CE |" in page
    assert "\nlivt compare losses\n" in page
    assert "livt compare starts" not in page  # one command for each set
    assert (
        "Small images. 67 training images in 3 classes, 50 to 5 per class; many-shot: more than 20 (1 class), " in page
    )
    assert "few-shot: fewer than 10 (1). 1,200 test images. Runs per row: 1 or 3." in page
    assert "A note: 22.0 points." in page


def test_runs_that_share_a_name_but_not_their_results_are_refused(comparisons):
    other = {"command": "livt compare again", "runs": [run("ce-0", "ce", "mae-tail", 61.0, 20.0)], **COMMON}
    (comparisons / "cifar10-lt-100" / "again.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="two runs are named ce-0; a folder is for one recipe"):
        evidence_page(comparisons)


def test_a_difference_is_of_pairs_and_of_means_otherwise(comparisons):
    (one,) = read_sets(comparisons)
    tail, balanced = select(one.runs, "ce"), select(one.runs, "ce", BALANCED)
    assert [role(member) for member in tail] == [TAIL] * 3
    assert difference_of(select(one.runs, "bce"), tail, "few").value == -18.5  # of seed 0 alone: 1.5 - 20
    assert difference_of(balanced, tail).value == -0.5  # 61.5 - 62
    assert difference_of(balanced, select(one.runs, "ldam")) is None


def test_intervals_of_a_record_replace_the_binomial_ones(comparisons):
    tail = select(read_sets(comparisons)[0].runs, "ce")
    measured = [{**member, "few": 20.0, "intervals": {"few": [18.0, 25.0]}} for member in tail]
    assert mean_of(measured, "few").half == 3.5  # equal runs
    assert mean_of(measured, "ece").half == 0.0  # over runs alone
    imbalanced = [{**member, "macro_accuracy": 30.0} for member in tail]
    assert mean_of(imbalanced, "macro_accuracy").half is None  # the test set is imbalanced: not known without intervals


def test_the_figure_has_a_panel_per_setting_and_stores_its_figures(comparisons):
    (one,) = read_sets(comparisons)
    (panel,) = evidence_figure([one]).axes
    assert panel.get_title() == "CIFAR"
    words = [text.get_text() for text in panel.texts]
    assert words == ["90", "50", "21", "90", "50", "2", "many", "medium", "few"]
    ticks = [label.get_text() for label in panel.get_xticklabels()]
    assert ticks == ["CE\n3 runs", "BCE\n1 run", "Bal-CE\nnot run", "Bal-BCE\nnot run"]
    shown = json.loads(drawn([one]))["cifar10-lt-100"]
    assert shown["bce"] == {"many": [90.0, None], "medium": [50.0, None], "few": [1.5, None]}
    assert shown["ce"]["few"] == [21.0, pytest.approx(4.7004, abs=1e-4)]


def test_notes_are_filled_and_say_when_they_became_false(comparisons):
    sets = read_sets(comparisons)
    text = "{cifar10-lt-100: ce, few}; {paper ViT-Ti: bal_bce - bce, all}; {published: deit_lt, all}"
    assert filled(text, sets, comparisons) == "21.0; 19.2; 87.5"
    with pytest.raises(ValueError, match=r"\{cifar10-lt-100: bce - ce, all\}: -12\.0 is not positive; reword"):
        filled("{cifar10-lt-100: bce - ce, all}", sets, comparisons)
    with pytest.raises(ValueError, match=r"ldam, all\}: not measured; reword"):
        filled("{cifar10-lt-100: ldam, all}", sets, comparisons)


def test_outputs_are_added_and_others_refused(comparisons, tmp_path):
    compared, pretrained = tmp_path / "more", tmp_path / "mae-more"
    (compared / "ce-0").mkdir(parents=True)
    pretrained.mkdir()
    comparison = json.loads((comparisons / "cifar10-lt-100" / "losses.json").read_text())
    (compared / "results.json").write_text(json.dumps(comparison))
    (compared / "ce-0" / "results.json").write_text(json.dumps({"intervals": {"few": [18.0, 22.0]}}))
    arguments = {"mask_ratio": 0.75, "epochs": 3.0, "dataset": "digits", "data_dir": "/home/someone/photos"}
    command = "livt pretrain --dataset digits --data_dir photos --epochs 3"
    record = {"arguments": arguments, "steps": 30, "versions": {}, "command": command}
    (pretrained / "run.json").write_text(json.dumps(record))
    (pretrained / "metrics.jsonl").write_text('{"step": 0, "probe_accuracy": 9}\n{"loss": 1.25}\n{"loss": 0.5}\n')
    folder = comparisons / "digits"
    add(folder, compared)
    add(folder, pretrained)
    added = json.loads((folder / "more.json").read_text())
    assert added["runs"][0].pop("intervals") == {"few": [18.0, 22.0]}
    assert added == comparison
    assert RunSet(folder, "", "", "").pretraining["mae-more"] == {
        "command": command,
        "epochs": 3.0,
        "steps": 30,
        "first_loss": 1.25,
        "loss": 0.5,
        "versions": {},
    }
    with pytest.raises(ValueError, match="not the output folder of a finished"):
        add(folder, tmp_path)
    (compared / "results.json").write_text(json.dumps({**comparison, "runs": comparison["runs"][1:]}))
    with pytest.raises(ValueError, match=r"more: lacks ce-0, which .*more\.json has; rename the folder"):
        add(folder, compared)


def test_the_quickstarts_record_has_no_more_than_its_table_needs(tmp_path):
    output = tmp_path / "livt-quickstart"
    output.mkdir()
    result = {**run("x", "ce", "mae", 60.0, 20.0), "per_class": {"0": 1.0}}
    (output / "results.json").write_text(json.dumps([result]))
    add(tmp_path / "quickstart", output)
    (kept,) = json.loads((tmp_path / "quickstart" / "results.json").read_text())
    assert "per_class" not in kept
    assert (kept["loss"], kept["few"]) == ("ce", 20.0)


def test_tuning_runs_keep_their_commands_and_accuracies(comparisons, tmp_path, monkeypatch):
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
        add(comparisons / "held-out", tmp_path / name)
    tried = json.loads((comparisons / "held-out" / "tried.json").read_text())
    assert {name: entry["accuracy"] for name, entry in tried.items()} == {name: run[2] for name, run in runs.items()}
    assert tried["masks"]["pretrain"] == "livt pretrain --dataset tune --output_dir mae-50 --mask_ratio 0.5"
    assert filled("{held-out: masks - base, all}", [], comparisons) == "2.0"
    with pytest.raises(ValueError, match="not the output folder of a finished `livt finetune`"):
        add(comparisons / "held-out", tmp_path / "mae")


def test_the_quickstart_is_said_to_repeat_the_runs_of_seed_0_only_where_it_does(comparisons):
    (comparisons / "cifar10-lt-100").rename(comparisons / "digits")
    names = {"digits": {"title": "Digits", "short": "Digits", "about": ""}}
    (comparisons / "sets.json").write_text(json.dumps(names))
    (comparisons / "notes.md").write_text("None.")
    (comparisons / "quickstart").mkdir()
    same = {**run("x", "ce", "pretrain", 60.0, 20.0), **{key: COMMON[key] for key in ("hardware", "versions")}}
    (comparisons / "quickstart" / "results.json").write_text(json.dumps([same]))
    sentence = "`livt quickstart` (CPU (a CPU, 2 cores), torch 2, transformers 5) and the runs of seed 0 on digits"
    assert sentence in evidence_page(comparisons)
    (comparisons / "quickstart" / "results.json").write_text(json.dumps([{**same, "few": 20.1}]))
    assert sentence not in evidence_page(comparisons)
