"""Light fine-tuning: the records of its runs, and their table."""

import json

import pytest

from documents import light


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
    light.add_run(page, light_run(tmp_path / "a", "bal_ce", 0, 40.0))
    light.add_run(page, light_run(tmp_path / "b", "bal_ce", 1, 44.0))
    light.add_run(page, light_run(tmp_path / "c", "ce", 0, 30.0, adapter="none"))
    means = {"given": {"classifier_init": "class_mean"}}
    light.add_run(page, light_run(tmp_path / "d", "bal_bce", 0, 41.0, **means))
    knn = {"accuracy": 20.0, "many": 21.0, "medium": 22.0, "few": 23.0}
    light.add_run(page, light_run(tmp_path / "e", "ce", 0, 35.0, given={"stage": "probe"}, steps=0, knn=knn))
    (page / "notes.md").write_text("What was done.\n")
    light.add_run(page, light_run(tmp_path / "f", "bal_ce", 0, 50.0, steps=99))
    heading, notes, table, link = light.light_section(page)
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
    assert link == "Commands: [runs.json](comparisons/light/runs.json)."
    assert [run["command"] for run in light.load(page).values()].count("livt finetune --loss ce") == 2
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="not the output folder of a finished"):
        light.add_run(page, tmp_path / "nothing")
