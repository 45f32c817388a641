"""Generate model_cards/EVIDENCE.md and the README's table of results: python scripts/evidence.py

Each folder of model_cards/comparisons/ is a dataset, with the results.json files of its `livt compare` runs, renamed,
and pretraining.json on its autoencoders. `--add FOLDER OUTPUT_DIR ...` copies these from the output folders of
`livt compare` and `livt pretrain`. The folder held-out is for the `livt finetune` runs in which options were tuned; the
first one added is the baseline.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import light_evidence
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.files import read_metrics, read_run
from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.blocks import code_block, escape_markdown, markdown_table, percent
from livt_hf.reporting.comparison_report import MEASURES, comparison_table, draw_comparison, summarize

ROOT = Path(__file__).parents[1]
COMPARISONS = ROOT / "model_cards" / "comparisons"
START, END = "<!-- evidence -->\n", "<!-- /evidence -->"
PRETRAINING = "pretraining.json"
STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}
HELD_OUT, TRIED = "held-out", "tried.json"
HELD_OUT_MARK = "<!-- held-out -->"  # in the notes: replaced by the table of tuning runs
PICTURES = {
    "accuracy.png": "Accuracy of every row",
    "convergence.png": "Accuracy on the {} split by epoch of fine-tuning",
    "model_size.png": "Accuracy by number of parameters",
}

# folder -> title and description
SETS = {
    "cifar10-lt-100": (
        "CIFAR-10-LT (JPEG copies), factor 100",
        "mae-lt: pretrained on these images; mae-bal: on the same number of class-balanced images.",
    ),
    "cifar10-lt-100-long": (
        "CIFAR-10-LT (JPEG copies), factor 100, longer training",
        "Four times the fine-tuning and 2.4 times the masked pretraining (mask ratio 0.9, one decoder layer).",
    ),
    "cifar10-lt-10": (
        "CIFAR-10-LT (JPEG copies), factor 10",
        "mae-lt: pretrained on the long tail of factor 100, a subset of these images; mae-bal-10: for nearly as many "
        "steps on the same number of class-balanced images.",
    ),
    "grocery": (
        "Grocery Store",
        "Real photos with a natural long tail; the test set is also imbalanced (276 to 14 images per class).",
    ),
    "digits": ("Digits", "The quickstart's 8 x 8 digits, with three seeds."),
    "grocery-sizes": (
        "Grocery Store, model sizes",
        "The paper's ViT-Ti and ViT-S at 96 pixels, with 36 patches of size 16 instead of 196.",
    ),
    "digits-sizes": ("Digits, model sizes", "The quickstart's model, and models of half and twice its width."),
}
SIZES = "-sizes"  # suffix of folders that compare model sizes
# the paper's accuracies of ViT-Ti, ViT-S and ViT-B on ImageNet-LT
PAPER_SIZES = {"ce": (37.0, 49.5, 54.5), "bce": (21.6, 39.8, 52.4), "bal_bce": (40.8, 54.1, 60.9)}

ALL = "macro_accuracy"  # accuracy on balanced test sets; on others (Grocery), large classes do not dominate it

Rows = Sequence[Mapping[str, Any]]


def load(folder: Path) -> list[dict[str, Any]]:
    """The comparisons of a dataset; runs from several autoencoders are labeled by their names."""
    files = sorted(file for file in folder.glob("*.json") if file.name != PRETRAINING)
    comparisons = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    runs = [run for comparison in comparisons for run in comparison["runs"]]
    starts = {run["pretrained"] for run in runs if run["pretrained"]}
    if len(starts) > 1:  # "MAE" would be ambiguous
        for run in runs:
            run["pretraining"] = Path(run["pretrained"]).name if run["pretrained"] else "none"
    return comparisons


def runs_of(folder: Path) -> Rows:
    """The distinct runs of all comparisons of a dataset, sorted by pretraining, loss and seed."""
    runs = {run["name"]: run for comparison in load(folder) for run in comparison["runs"]}
    # pretraining on the long tail first: the statements compare with it
    starts = list(dict.fromkeys(run["pretraining"] for run in runs.values()))
    starts.sort(key=lambda start: (start == "none", "bal" in start))
    losses = list(SHORT_NAMES)
    return sorted(
        runs.values(), key=lambda run: (starts.index(run["pretraining"]), losses.index(run["loss"]), run["seed"])
    )


def rows_of(folder: Path) -> Rows:
    """One row per pretraining and loss, over all comparisons of a dataset."""
    return summarize(runs_of(folder))


def figure(rows: Rows, loss: str, measure: str = ALL, pretraining: str | None = None) -> float | None:
    """The mean of a loss; ``pretraining`` None: of its first row."""
    for row in rows:
        if row["loss"] == loss and not row["post_hoc"] and pretraining in (None, row["pretraining"]):
            return row[measure]["mean"]
    return None


def gain(loss: str, over: str, measure: str = ALL) -> Callable[[Rows], float | None]:
    """Difference between two losses."""

    def difference(rows: Rows) -> float | None:
        first, second = figure(rows, loss, measure), figure(rows, over, measure)
        return None if first is None or second is None else first - second

    return difference


def gain_of_pretraining(loss: str) -> Callable[[Rows], float | None]:
    """Difference between a loss with and without pretraining."""

    def difference(rows: Rows) -> float | None:
        first, second = figure(rows, loss), figure(rows, loss, pretraining="none")
        return None if first is None or second is None else first - second

    return difference


def gain_of_balance(rows: Rows) -> float | None:
    """Difference between CE after pretraining on balanced images and on the long tail."""
    balanced = next((row["pretraining"] for row in rows if "bal" in row["pretraining"]), None)
    if balanced is None:
        return None
    return figure(rows, "ce", pretraining=balanced) - figure(rows, "ce")  # type: ignore[operator]


# claim, the paper's difference (ImageNet-LT, ViT-B; as printed where it gives one), and ours
CLAIMS: list[tuple[str, float | None, Callable[[Rows], float | None]]] = [
    ("BCE fails on the tail: few-shot, BCE minus CE", 15.6 - 19.4, gain("bce", "ce", "few")),
    ("Bal-BCE minus BCE, all", 8.6, gain("bal_bce", "bce")),
    ("Bal-BCE minus BCE, few-shot", 25.4, gain("bal_bce", "bce", "few")),
    ("Bal-CE minus CE, all", 5.6, gain("bal_ce", "ce")),
    ("Bal-CE minus CE, few-shot", 24.3, gain("bal_ce", "ce", "few")),
    ("Bal-BCE minus Bal-CE, all", 60.9 - 60.1, gain("bal_bce", "bal_ce")),
    ("Pretraining minus none, CE, all", 54.5 - 31.6, gain_of_pretraining("ce")),
    ("Pretraining minus none, Bal-BCE, all", None, gain_of_pretraining("bal_bce")),
    ("Pretraining on balanced minus long-tailed images, CE, all", None, gain_of_balance),
    ("Calibration: ECE, Bal-BCE minus BCE", -3.1, gain("bal_bce", "bce", "ece")),
    ("Calibration: MCE, Bal-BCE minus BCE", -4.7, gain("bal_bce", "bce", "mce")),
]


def claims_table(sets: Mapping[str, Rows]) -> str:
    """The paper's claims: its differences in points, and ours on every dataset."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{round(value, 1) + 0.0:+.1f}"  # no -0.0

    rows = [[claim, cell(paper), *(cell(measure(rows)) for rows in sets.values())] for claim, paper, measure in CLAIMS]
    header = ["Claim (difference in points)", "Paper", *(SETS[name][0] for name in sets)]
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def size_table(sets: Mapping[str, Rows]) -> str:
    """Macro accuracy by model size: the paper's and ours, smallest model first."""
    rows = [["ImageNet-LT (paper)", "5.7 / 22 / 86", *(" / ".join(map(str, row)) for row in PAPER_SIZES.values())]]
    for name, members in sets.items():
        sizes = sorted({row["parameters"] for row in members})
        found = {(row["loss"], row["parameters"]): percent(row[ALL]["mean"]) for row in members}
        cells = [" / ".join(found.get((loss, size), "–") for size in sizes) for loss in PAPER_SIZES]
        rows.append([SETS[name][0], " / ".join(f"{size / 1e6:.3g}" for size in sizes), *cells])
    header = [
        "Macro accuracy by model size",
        "Parameters (M)",
        *(SHORT_NAMES[loss] for loss in PAPER_SIZES),
    ]
    return markdown_table(header, rows, "llrrr")


def evidence_page(comparisons: Path = COMPARISONS) -> str:
    """The text of model_cards/EVIDENCE.md."""
    folders = [comparisons / name for name in SETS if (comparisons / name).is_dir()]
    sets = {folder.name: rows_of(folder) for folder in folders}
    sizes = {name: rows for name, rows in sets.items() if name.endswith(SIZES)}
    notes = (comparisons / "notes.md").read_text(encoding="utf-8").strip()
    notes = notes.replace(HELD_OUT_MARK, held_out_section(comparisons / HELD_OUT / TRIED))
    return "\n\n".join(
        [
            "# Evidence",
            "The paper's claims, measured with this code on real images, beside the published results. "
            "Accuracies and calibration errors (15 bins) in percent; mean ± sample standard deviation over several "
            "seeds of fine-tuning; the best mean of each column in bold. Every command ran on one thread "
            "(`OMP_NUM_THREADS=1`).",
            "## The paper's claims",
            "The paper's results are for ViT-B on ImageNet-LT (Xu et al., CVPR 2023). Ours are for much smaller "
            "models, images and training budgets: compare the sign of a difference rather than its size. All: macro "
            "accuracy, which equals accuracy on a balanced test set.",
            claims_table({name: rows for name, rows in sets.items() if name not in sizes}),
            size_table(sizes),
            notes,
            *_light_section(comparisons / light_evidence.FOLDER),
            *(_dataset_section(folder, sets[folder.name]) for folder in folders),
            "*Generated by `python scripts/evidence.py` from the files in `comparisons/`.*\n",
        ]
    )


def _light_section(folder: Path) -> list[str]:
    parts = light_evidence.light_section(folder)
    if not parts:
        return []
    pretraining = _pretraining(folder)
    commands = code_block("\n".join(run["command"] for run in pretraining.values()))
    lines = "\n".join(f"- {_pretraining_line(name, run)}" for name, run in pretraining.items())
    return [*parts[:-1], lines, commands, parts[-1], f"*{measured_on(list(light_evidence.load(folder).values()))}*"]


def _dataset_section(folder: Path, rows: Rows) -> str:
    title, description = SETS[folder.name]
    comparisons = load(folder)
    counts, images = comparisons[0]["class_counts"], comparisons[0]["images"]
    parts = [
        f"## {title}",
        f"{description} {sum(counts.values()):,} training images in {len(counts)} classes, {max(counts.values()):,} to "
        f"{min(counts.values()):,} per class. {_groups_sentence(comparisons[0]['groups'])} Evaluated on {images:,} "
        "images after the last epoch.",
        comparison_table(rows),
    ]
    split = (comparisons[0]["runs"][0]["curve"] or {}).get("split")
    pictures = {file: caption.format(split) for file, caption in PICTURES.items() if (folder / file).is_file()}
    parts += [f"![{caption}](comparisons/{folder.name}/{file})" for file, caption in pictures.items()]
    pretraining = _pretraining(folder)
    if pretraining:
        parts.append("\n".join(f"- {_pretraining_line(name, run)}" for name, run in pretraining.items()))
    commands = [run["command"] for run in pretraining.values()] + [c["command"] for c in comparisons]
    parts.append(code_block("\n".join(dict.fromkeys(commands))))
    parts.append(f"*{measured_on(comparisons)}*")
    return "\n\n".join(parts)


def _groups_sentence(groups: Mapping[str, Any]) -> str:
    """The definition of the shot groups."""
    definition, sizes = groups["definition"], groups["sizes"]
    if definition["by"] == "rank":
        return (
            f"Many-, medium- and few-shot: the {sizes['many']} largest, the next {sizes['medium']} and the "
            f"{sizes['few']} smallest classes."
        )
    many, few = definition["many"], definition["few"]
    return (
        f"Many-, medium- and few-shot: more than {many}, {few} to {many}, fewer than {few} training images "
        f"({sizes['many']} / {sizes['medium']} / {sizes['few']} classes)."
    )


def held_out_section(file: Path) -> str:
    """Tuning runs on held-out images: their differences from the baseline, and its commands."""
    if not file.is_file():
        return ""
    tried = list(json.loads(file.read_text(encoding="utf-8")).values())
    base = tried[0]
    rows = [
        [
            "; ".join(words for stage in STAGES if (words := changed(run[stage], base[stage], stage)))
            or "baseline (commands below)",
            *(percent(run[measure]) for measure in ("many", "medium", "few", "accuracy")),
        ]
        for run in tried
    ]
    table = markdown_table(("Changed options", "Many", "Med.", "Few", "Acc"), rows, "lrrrr")
    commands = code_block("\n".join(base[stage] for stage in STAGES))
    return f"{table}\n\n{commands}\n\n*{measured_on(tried)}*"


def changed(command: str, base: str, stage: str) -> str:
    """The options of a command that differ from another's, where omitted options have their defaults."""
    options, others = ({words.split()[0]: words for words in text.split(" --")[1:]} for text in (command, base))
    defaults = {field.name: field.default for field in dataclasses.fields(STAGES[stage])}
    differing = [
        options.get(name) or f"{name} {defaults.get(name, '(default)')}"
        for name in dict.fromkeys([*others, *options])
        if options.get(name) != others.get(name) and name not in ("output_dir", "pretrained", "eval_every")
    ]
    return f"{stage}: {', '.join(f'`--{words}`' for words in differing)}" if differing else ""


def _pretraining(folder: Path) -> dict[str, Any]:
    file = folder / PRETRAINING
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _pretraining_line(name: str, run: Mapping[str, Any]) -> str:
    return (
        f"{escape_markdown(name)}: {run['epochs']:g} epochs of masked pretraining ({run['steps']:,} steps), loss "
        f"{run['first_loss']:.3f} -> {run['loss']:.3f}."
    )


def measured_on(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The distinct machines and versions."""
    lines = []
    for comparison in comparisons:
        machine, versions = comparison["hardware"], comparison["versions"]
        device = "CPU" if machine["device"] == "cpu" else machine["device"]
        lines.append(
            f"{device} ({machine['cpu']}, {machine['cores']} cores), torch {versions['torch']}, transformers "
            f"{versions['transformers']}"
        )
    return "; ".join(dict.fromkeys(lines)) + "."


def readme_section(comparisons: Path = COMPARISONS) -> str:
    """The README's table: macro and few-shot accuracy of the main losses on every dataset."""
    losses = ("ce", "bce", "bal_ce", "bal_bce")
    rows = []
    for name, (title, _) in SETS.items():
        if not (comparisons / name).is_dir() or name.endswith(SIZES):
            continue
        table = rows_of(comparisons / name)
        seeds = len({run["seed"] for run in runs_of(comparisons / name) if run["loss"] in losses})
        for measure in (ALL, "few"):
            values = [figure(table, loss, measure) for loss in losses]
            rows.append([title, str(seeds), MEASURES[measure], *("–" if v is None else f"{v:.1f}" for v in values)])
    header = ["Data", "Seeds", "", *(SHORT_NAMES[loss] for loss in losses)]
    return markdown_table(header, rows, "lrl" + "r" * len(losses)) + "\n"


def with_section(readme: str, section: str) -> str:
    """The README with this text between its marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{section}{END}{after}"


def add(folder: Path, output_dir: Path) -> None:
    """Copy the results of `livt compare` or `livt pretrain`, or, into the folder held-out, of `livt finetune`.

    Raises:
        ValueError: it is not the output folder of such a run, or the run is not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.name == HELD_OUT:
        _add_tried(folder / TRIED, output_dir)
    elif folder.name == light_evidence.FOLDER and "mask_ratio" not in (read_run(output_dir) or {}).get("arguments", {}):
        light_evidence.add_run(folder, output_dir)
    elif (output_dir / "results.json").is_file():
        shutil.copyfile(output_dir / "results.json", folder / f"{output_dir.name}.json")
        draw_comparison(folder, rows_of(folder), runs_of(folder))
    elif (record := read_run(output_dir)) and "mask_ratio" in record["arguments"]:
        losses = [entry["loss"] for entry in read_metrics(output_dir) if "loss" in entry]
        runs = _pretraining(folder)
        runs[output_dir.name] = {
            "command": record["command"],
            "epochs": record["arguments"]["epochs"],
            "steps": record["steps"],
            "first_loss": losses[0],
            "loss": losses[-1],
            "versions": record["versions"],
        }
        (folder / PRETRAINING).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    else:
        raise ValueError(f"{output_dir}: not the output folder of a finished `livt compare` or `livt pretrain`")


def _add_tried(file: Path, output_dir: Path) -> None:
    record = read_run(output_dir)
    if record is None or not (output_dir / "results.json").is_file():
        raise ValueError(f"{output_dir}: not the output folder of a finished `livt finetune`")
    start = record["arguments"]["pretrained"]
    autoencoder = read_run(Path(start))
    if autoencoder is None:
        raise ValueError(f"{start}: not found, but {output_dir} was trained from it; run this beside it")
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    tried = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tried[output_dir.name] = {
        "pretrain": autoencoder["command"],
        "finetune": record["command"],
        **{measure: results[measure] for measure in ("many", "medium", "few", "accuracy")},
        **{key: results[key] for key in ("split", "images", "versions", "hardware")},
    }
    file.write_text(json.dumps(tried, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add",
        choices=[*SETS, HELD_OUT, light_evidence.FOLDER],
        metavar="FOLDER",
        help="subfolder of model_cards/comparisons/",
    )
    parser.add_argument("output_dir", nargs="*", type=Path, help="with --add: output folders to copy from")
    args = parser.parse_args()
    try:
        for output_dir in args.output_dir:
            add(COMPARISONS / args.add, output_dir)
    except ValueError as error:
        sys.exit(str(error))
    (ROOT / "model_cards" / "EVIDENCE.md").write_text(evidence_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), readme_section()), encoding="utf-8")


if __name__ == "__main__":
    main()
