"""The records in model_cards/comparisons/: one folder per set of runs that share dataset and recipe.

sets.json lists the folders with title and description. A folder has the results.json files of `livt compare`, renamed,
and pretraining.json on the masked autoencoders. Autoencoders whose name contains "bal" were pretrained on
class-balanced images; all others of a folder are repetitions of one another, with other seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livt_hf.files import read_json, read_metrics, read_run
from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.comparison_table import MEASURES

from .intervals import Estimate, binomial_half, estimate, unpaired_difference

ROOT = Path(__file__).parents[2]
MODEL_CARDS = ROOT / "model_cards"
COMPARISONS = MODEL_CARDS / "comparisons"
SETS, PRETRAINING, HELD_OUT, TRIED = "sets.json", "pretraining.json", "held-out", "tried.json"
QUICKSTART, RESULTS = "quickstart", "results.json"
ALL = "macro_accuracy"  # accuracy on balanced test sets; on others (Grocery), large classes do not dominate it
CALIBRATION = ("ece", "mce")
LOSSES = ("ce", "bce", "bal_ce", "bal_bce")
# What the record of the quickstart keeps of results.json
KEPT = ["loss", "pretrained", "seed", "parameters", "dataset", "split", "images", "class_counts", "groups"]
KEPT += [*MEASURES, "test_counts", "intervals", "command", "versions", "hardware"]
TAIL, BALANCED, NONE = "MAE", "MAE, balanced images", "none"

Run = Mapping[str, Any]


@dataclass(frozen=True)
class RunSet:
    """A folder of comparisons.

    Attributes:
        title: of its section.
        short: of its columns and rows in tables, and of its panel.
        about: sentences under the title.
        panel: has a panel in the figure.
        sizes: compares model sizes, and has no column of differences.
    """

    folder: Path
    title: str
    short: str
    about: str
    panel: bool = False
    sizes: bool = False

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """The comparisons by file name."""
        files = sorted(file for file in self.folder.glob("*.json") if file.name != PRETRAINING)
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    @property
    def runs(self) -> list[Run]:
        """The distinct runs, those of `TAIL` first, by loss and seed.

        Raises:
            ValueError: two runs have the same name and different results.
        """
        runs: dict[str, Run] = {}
        for comparison in self.comparisons:
            tested = {"images": comparison["images"], "sizes": comparison["groups"]["sizes"]}
            for run in comparison["runs"]:
                first = runs.setdefault(run["name"], {**run, **tested})
                if any(first[measure] != run[measure] for measure in MEASURES):
                    raise ValueError(f"{self.folder}: two runs are named {run['name']}; a folder is for one recipe")
        order = (TAIL, BALANCED, NONE)
        losses = list(SHORT_NAMES)
        return sorted(
            runs.values(),
            key=lambda run: (order.index(role(run)), run["parameters"], losses.index(run["loss"]), run["seed"]),
        )

    @property
    def pretraining(self) -> dict[str, Any]:
        file = self.folder / PRETRAINING
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_sets(comparisons: Path = COMPARISONS) -> list[RunSet]:
    """The sets that have runs, in the order of sets.json."""
    listed = read_json(comparisons, SETS)
    sets = [RunSet(comparisons / name, **entries) for name, entries in listed.items()]
    return [one for one in sets if one.folder.is_dir() and one.comparisons]


def role(run: Run) -> str:
    """The kind of pretraining: `TAIL`, `BALANCED` or `NONE`."""
    if not run["pretrained"]:
        return NONE
    return BALANCED if "bal" in autoencoder(run) else TAIL


def autoencoder(run: Run) -> str:
    return Path(run["pretrained"]).name if run["pretrained"] else NONE


def select(runs: Sequence[Run], loss: str, pretraining: str = TAIL) -> list[Run]:
    """Runs of a loss, not adjusted post hoc."""
    return [run for run in runs if (run["loss"], role(run), run["post_hoc"]) == (loss, pretraining, None)]


def mean_of(runs: Sequence[Run], measure: str = ALL) -> Estimate | None:
    """The mean over runs of one kind; None without runs."""
    return estimate(_by_autoencoder(runs, measure), test_half(runs, measure)) if runs else None


def difference_of(first: Sequence[Run], second: Sequence[Run], measure: str = ALL) -> Estimate | None:
    """Difference of two kinds of runs, paired by autoencoder and seed where both have them; None if one has no runs."""
    if not first or not second:
        return None
    halves = (test_half(first, measure), test_half(second, measure))
    half = None if None in halves else math.hypot(*halves)  # type: ignore[arg-type]
    if role(first[0]) != role(second[0]):
        return unpaired_difference(_by_autoencoder(first, measure), _by_autoencoder(second, measure), half)
    others = {(autoencoder(run), run["seed"]): run[measure] for run in second}
    pairs: dict[str, list[float]] = {}
    for run in first:
        if (autoencoder(run), run["seed"]) in others:
            other = others[autoencoder(run), run["seed"]]
            pairs.setdefault(autoencoder(run), []).append(run[measure] - other)
    return estimate(pairs, half) if pairs else None


def test_half(runs: Sequence[Run], measure: str) -> float | None:
    """Half-width, in points, from the sampling of the test images: the mean over runs; None if it is not known.

    0 for calibration errors: their intervals are over runs only.
    """
    halves = [_test_half(run, measure) for run in runs]
    return None if None in halves else sum(halves) / len(halves)  # type: ignore[arg-type]


def _test_half(run: Run, measure: str) -> float | None:
    if measure in CALIBRATION:
        return 0.0
    interval = (run.get("intervals") or {}).get(measure)
    if interval:
        return (interval[1] - interval[0]) / 2
    if abs(run["accuracy"] - run[ALL]) > 1e-6:  # an imbalanced test set
        return None
    classes = sum(run["sizes"].values())
    images = run["images"] / classes * run["sizes"].get(measure, classes)
    return binomial_half(run[measure], round(images))


def _by_autoencoder(runs: Sequence[Run], measure: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(autoencoder(run), []).append(run[measure])
    return values


def add(folder: Path, output_dir: Path) -> None:
    """Copy the results of `livt compare`, `livt pretrain` or `livt quickstart`; into held-out, of `livt finetune`.

    Raises:
        ValueError: it is not the output folder of such a run, the run is not finished, or a record with other runs
            has its name.
    """
    record = read_run(output_dir)
    pretrained = record is not None and "mask_ratio" in record["arguments"]
    if not pretrained and not (output_dir / RESULTS).is_file():
        raise ValueError(f"{output_dir}: not the output folder of a finished `livt compare` or `livt pretrain`")
    folder.mkdir(parents=True, exist_ok=True)
    if folder.name == HELD_OUT:
        _add_tried(folder / TRIED, output_dir)
    elif pretrained and record is not None:
        _add_pretraining(folder / PRETRAINING, output_dir, record)
    elif folder.name == QUICKSTART:
        runs = [{key: run.get(key) for key in KEPT} for run in json.loads((output_dir / RESULTS).read_text("utf-8"))]
        (folder / RESULTS).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    else:
        comparison = read_json(output_dir, RESULTS)
        for run in comparison["runs"]:
            if (output_dir / run["name"] / RESULTS).is_file():  # `livt compare` leaves the intervals there
                run["intervals"] = read_json(output_dir / run["name"], RESULTS).get("intervals")
        file = folder / f"{output_dir.name}.json"
        known = read_json(folder, file.name)["runs"] if file.exists() else []
        if missing := {run["name"] for run in known} - {run["name"] for run in comparison["runs"]}:
            raise ValueError(f"{output_dir}: lacks {min(missing)}, which {file} has; rename the folder")
        file.write_text(json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_pretraining(file: Path, output_dir: Path, record: Mapping[str, Any]) -> None:
    losses = [entry["loss"] for entry in read_metrics(output_dir) if "loss" in entry]
    runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    runs[output_dir.name] = {
        "command": record["command"],
        "epochs": record["arguments"]["epochs"],
        "steps": record["steps"],
        "first_loss": losses[0],
        "loss": losses[-1],
        "versions": record["versions"],
    }
    file.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


def _add_tried(file: Path, output_dir: Path) -> None:
    record = read_run(output_dir)
    if record is None or not (output_dir / RESULTS).is_file():
        raise ValueError(f"{output_dir}: not the output folder of a finished `livt finetune`")
    start = record["arguments"]["pretrained"]
    autoencoder_record = read_run(Path(start))
    if autoencoder_record is None:
        raise ValueError(f"{start}: not found, but {output_dir} was trained from it; run this beside it")
    results = read_json(output_dir, RESULTS)
    tried = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tried[output_dir.name] = {
        "pretrain": autoencoder_record["command"],
        "finetune": record["command"],
        **{measure: results[measure] for measure in ("many", "medium", "few", "accuracy")},
        **{key: results[key] for key in ("split", "images", "versions", "hardware")},
    }
    file.write_text(json.dumps(tried, indent=2) + "\n", encoding="utf-8")
