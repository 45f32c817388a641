"""Light fine-tuning of a pretrained model against training all its weights: the runs, and their section of EVIDENCE.md.

`python scripts/evidence.py --add light OUTPUT_DIR ...` copies what the section needs from output folders of
`livt finetune`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from livt_hf.files import read_json, read_run
from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.blocks import markdown_table, percent

FOLDER, RUNS, NOTES = "light", "runs.json", "notes.md"
TITLE = "Light fine-tuning"
MEASURES = ("macro_accuracy", "many", "medium", "few", "ece")
METHODS = ("All weights", "LoRA", "LoRA, class means", "Linear probe", "k-NN")


def add_run(folder: Path, output_dir: Path) -> None:
    """Copy the figures of a finished run of `livt finetune`; ValueError if it is none."""
    record = read_run(output_dir)
    if record is None or not (output_dir / "results.json").is_file():
        raise ValueError(f"{output_dir}: not the output folder of a finished `livt finetune`")
    runs, results = load(folder), read_json(output_dir, "results.json")
    runs[output_dir.name] = {
        "method": method_of(record["arguments"]),
        "steps": record["steps"],
        "command": record["command"],
        **{name: results[name] for name in ("loss", "seed", "images", "parameters", "trained_parameters", "groups")},
        **{name: results[name] for name in (*MEASURES, "intervals", "versions", "hardware")},
        **({"knn": results["knn"]} if "knn" in results else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNS).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs by the names of their output folders."""
    return read_json(folder, RUNS) if (folder / RUNS).is_file() else {}


def method_of(arguments: Mapping[str, Any]) -> str:
    """One of `METHODS`, by the options of a run."""
    if arguments["stage"] == "probe":
        return "Linear probe"
    if arguments["adapter"] == "none":
        return "All weights"
    return "LoRA, class means" if arguments["classifier_init"] == "class_mean" else "LoRA"


def light_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row per method, steps and loss: means over the seeds, with the ends of the intervals farthest apart."""
    rows = []
    for method in METHODS:
        for steps in sorted({run["steps"] for run in runs if run["method"] == method}):
            for loss in SHORT_NAMES:
                members = [run for run in runs if (run["method"], run["steps"], run["loss"]) == (method, steps, loss)]
                if members:
                    rows.append([method, str(steps or "–"), SHORT_NAMES[loss], *_cells(members)])
    neighbors = [run["knn"] for run in runs if "knn" in run]
    if neighbors:
        values = [percent(neighbors[0][name]) for name in ("accuracy", "many", "medium", "few")]
        rows.append(["k-NN", "–", "–", "–", "1", *values, "–"])
    header = ["Trained", "Steps", "Loss", "Parameters", "Seeds", "Macro ↑ (95 %)", "Many ↑", "Med. ↑", "Few ↑", "ECE ↓"]
    return markdown_table(header, rows, "lrlrrrrrrr")


def _cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def mean(name: str) -> str:
        return percent(sum(run[name] for run in runs) / len(runs))

    ends = [run["intervals"]["macro_accuracy"] for run in runs]
    interval = f"({percent(min(low for low, _ in ends))}–{percent(max(high for _, high in ends))})"
    numbers = [f"{runs[0]['trained_parameters']:,}", str(len(runs)), f"{mean('macro_accuracy')} {interval}"]
    return [*numbers, *(mean(name) for name in MEASURES[1:])]


def light_section(folder: Path) -> list[str]:
    """The paragraphs of the section; none if there are no runs."""
    runs = load(folder)
    if not runs:
        return []
    notes = (folder / NOTES).read_text(encoding="utf-8").strip()
    link = f"Commands: [{RUNS}](comparisons/{FOLDER}/{RUNS})."
    return [f"## {TITLE}", notes, light_table(list(runs.values())), link]
