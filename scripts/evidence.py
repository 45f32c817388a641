"""Write model_cards/EVIDENCE.md and the README's table from measured comparisons: python scripts/evidence.py

Each folder of model_cards/comparisons/ is a dataset: the results.json files of its `livt compare` runs under names of
their own, and what its autoencoders were pretrained with. `--add FOLDER OUTPUT_DIR ...` copies these from the output
folders of `livt compare` and `livt pretrain`. The folder held-out is for the runs of `livt finetune` that options were
tried with; the first one added is what the others are compared with.
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

from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.files import read_metrics, read_run
from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.blocks import code_block, escape_markdown, markdown_table
from livt_hf.reporting.comparison_report import MEASURES, comparison_table, draw_comparison, summarize
from livt_hf.reporting.evaluation_report import percent

ROOT = Path(__file__).parents[1]
COMPARISONS = ROOT / "model_cards" / "comparisons"
START, END = "<!-- evidence -->\n", "<!-- /evidence -->"
PRETRAINING = "pretraining.json"
STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}
HELD_OUT, TRIED = "held-out", "tried.json"
HELD_OUT_MARK = "<!-- held-out -->"  # where the notes have the table of what was tried
PICTURES = {
    "accuracy.png": "Accuracy of every row",
    "convergence.png": "Accuracy on the {} split over the epochs of fine-tuning",
    "model_size.png": "Accuracy over the number of parameters",
}

# folder -> title and what a reader should know of it
SETS = {
    "cifar10-lt-100": (
        "CIFAR-10-LT (JPEG copies), factor 100",
        "mae-lt: pretrained on these images; mae-bal: on as many, equally many of each class.",
    ),
    "cifar10-lt-100-long": (
        "CIFAR-10-LT (JPEG copies), factor 100, longer training",
        "Four times the fine-tuning, after 2.4 times the masked pretraining (with a mask ratio of 0.9 and a decoder of "
        "one block).",
    ),
    "cifar10-lt-10": (
        "CIFAR-10-LT (JPEG copies), factor 10",
        "mae-lt: pretrained on the tail of factor 100, all of whose images are among these; mae-bal-10: for nearly as "
        "many steps on as many images as these, equally many of each class.",
    ),
    "grocery": (
        "Grocery Store",
        "Real photos with a natural tail; the test set is unbalanced, too (276 to 14 images a class).",
    ),
    "digits": ("Digits", "The quickstart's 8 x 8 digits, with three seeds."),
    "grocery-sizes": (
        "Grocery Store, model sizes",
        "The paper's ViT-Ti and ViT-S, at 96 pixels: 36 patches of 16, where the paper has 196.",
    ),
    "digits-sizes": ("Digits, model sizes", "The quickstart's model, and models of half and of twice its width."),
}
SIZES = "-sizes"  # the end of a folder's name that compares model sizes
# the paper's accuracies of ViT-Ti, ViT-S and ViT-B on ImageNet-LT
PAPER_SIZES = {"ce": (37.0, 49.5, 54.5), "bce": (21.6, 39.8, 52.4), "bal_bce": (40.8, 54.1, 60.9)}

ALL = "macro_accuracy"  # the accuracy where the test set is balanced, and the fair figure where it is not, as Grocery's

Rows = Sequence[Mapping[str, Any]]


def load(folder: Path) -> list[dict[str, Any]]:
    """The comparisons of a dataset, and with them the names of what they started from."""
    files = sorted(file for file in folder.glob("*.json") if file.name != PRETRAINING)
    comparisons = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    runs = [run for comparison in comparisons for run in comparison["runs"]]
    starts = {run["pretrained"] for run in runs if run["pretrained"]}
    if len(starts) > 1:  # "MAE" would not tell them apart
        for run in runs:
            run["pretraining"] = Path(run["pretrained"]).name if run["pretrained"] else "none"
    return comparisons


def runs_of(folder: Path) -> Rows:
    """The runs of all comparisons of a dataset, those of one pretraining and loss together; each counts once."""
    runs = {run["name"]: run for comparison in load(folder) for run in comparison["runs"]}
    # what the statements compare with comes first: the pretraining on the tail
    starts = list(dict.fromkeys(run["pretraining"] for run in runs.values()))
    starts.sort(key=lambda start: (start == "none", "bal" in start))
    losses = list(SHORT_NAMES)
    return sorted(
        runs.values(), key=lambda run: (starts.index(run["pretraining"]), losses.index(run["loss"]), run["seed"])
    )


def rows_of(folder: Path) -> Rows:
    """One row for each pretraining and loss, of all comparisons of a dataset."""
    return summarize(runs_of(folder))


def figure(rows: Rows, loss: str, measure: str = ALL, pretraining: str | None = None) -> float | None:
    """The mean of a row; ``pretraining`` None: of the first row with that loss."""
    for row in rows:
        if row["loss"] == loss and not row["post_hoc"] and pretraining in (None, row["pretraining"]):
            return row[measure]["mean"]
    return None


def gain(loss: str, over: str, measure: str = ALL) -> Callable[[Rows], float | None]:
    """Figure of one loss less that of another."""

    def difference(rows: Rows) -> float | None:
        first, second = figure(rows, loss, measure), figure(rows, over, measure)
        return None if first is None or second is None else first - second

    return difference


def gain_of_pretraining(loss: str) -> Callable[[Rows], float | None]:
    """Figure of a loss after pretraining, less that without."""

    def difference(rows: Rows) -> float | None:
        first, second = figure(rows, loss), figure(rows, loss, pretraining="none")
        return None if first is None or second is None else first - second

    return difference


def gain_of_balance(rows: Rows) -> float | None:
    """CE after pretraining on equally many images of each class, less CE after pretraining on the tail."""
    balanced = next((row["pretraining"] for row in rows if "bal" in row["pretraining"]), None)
    if balanced is None:
        return None
    return figure(rows, "ce", pretraining=balanced) - figure(rows, "ce")  # type: ignore[operator]


# statement, the paper's figure (ImageNet-LT, ViT-B; as printed, where the difference is), and the same of ours
STATEMENTS: list[tuple[str, float | None, Callable[[Rows], float | None]]] = [
    ("BCE loses the tail: few-shot accuracy, BCE less CE", 15.6 - 19.4, gain("bce", "ce", "few")),
    ("Bal-BCE over BCE, all", 8.6, gain("bal_bce", "bce")),
    ("Bal-BCE over BCE, few-shot", 25.4, gain("bal_bce", "bce", "few")),
    ("Bal-CE over CE, all", 5.6, gain("bal_ce", "ce")),
    ("Bal-CE over CE, few-shot", 24.3, gain("bal_ce", "ce", "few")),
    ("Bal-BCE over Bal-CE, all", 60.9 - 60.1, gain("bal_bce", "bal_ce")),
    ("Pretraining over none, CE, all", 54.5 - 31.6, gain_of_pretraining("ce")),
    ("Pretraining over none, Bal-BCE, all", None, gain_of_pretraining("bal_bce")),
    ("Pretraining on balanced images over the tail's, CE, all", None, gain_of_balance),
    ("Calibration: ECE, Bal-BCE less BCE", -3.1, gain("bal_bce", "bce", "ece")),
    ("Calibration: MCE, Bal-BCE less BCE", -4.7, gain("bal_bce", "bce", "mce")),
]


def statements_table(sets: Mapping[str, Rows]) -> str:
    """The paper's statements: its differences in points, and ours on every dataset."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{round(value, 1) + 0.0:+.1f}"  # no -0.0

    rows = [
        [statement, cell(paper), *(cell(measure(rows)) for rows in sets.values())]
        for statement, paper, measure in STATEMENTS
    ]
    header = ["Statement (difference in points)", "Paper", *(SETS[name][0] for name in sets)]
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def size_table(sets: Mapping[str, Rows]) -> str:
    """Accuracy (macro) over model size: the paper's and ours, the smallest model first."""
    rows = [["ImageNet-LT (paper)", "5.7 / 22 / 86", *(" / ".join(map(str, row)) for row in PAPER_SIZES.values())]]
    for name, members in sets.items():
        sizes = sorted({row["parameters"] for row in members})
        found = {(row["loss"], row["parameters"]): percent(row[ALL]["mean"]) for row in members}
        cells = [" / ".join(found.get((loss, size), "–") for size in sizes) for loss in PAPER_SIZES]
        rows.append([SETS[name][0], " / ".join(f"{size / 1e6:.3g}" for size in sizes), *cells])
    header = [
        "Accuracy (mean over classes) over model size",
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
            "What the paper states, measured with this code on real images, and how far it is from the published "
            "figures. Accuracies and calibration errors (over 15 bins) in percent; mean ± sample standard deviation "
            "over the seeds of fine-tuning where there is more than one; bold: the best mean of a column. Every "
            "command ran on one thread (`OMP_NUM_THREADS=1`).",
            "## The paper's statements",
            "The paper's figures are those of ViT-B on ImageNet-LT (Xu et al., CVPR 2023). Ours are of far smaller "
            "models, images and trainings: the sign of a difference can be compared, its size hardly. All: the mean "
            "over classes, which is the accuracy where the test set has equally many images of each class.",
            statements_table({name: rows for name, rows in sets.items() if name not in sizes}),
            size_table(sizes),
            notes,
            *(_data_set(folder, sets[folder.name]) for folder in folders),
            "*This page is written by `python scripts/evidence.py` from the files in `comparisons/`.*\n",
        ]
    )


def _data_set(folder: Path, rows: Rows) -> str:
    title, words = SETS[folder.name]
    comparisons = load(folder)
    counts, images = comparisons[0]["class_counts"], comparisons[0]["images"]
    parts = [
        f"## {title}",
        f"{words} {sum(counts.values()):,} training images of {len(counts)} classes, {max(counts.values()):,} to "
        f"{min(counts.values()):,} each. {_groups_sentence(comparisons[0]['groups'])} Tested on {images:,} images, "
        "after the last epoch.",
        comparison_table(rows),
    ]
    split = (comparisons[0]["runs"][0]["curve"] or {}).get("split")
    pictures = {file: words.format(split) for file, words in PICTURES.items() if (folder / file).is_file()}
    parts += [f"![{words}](comparisons/{folder.name}/{file})" for file, words in pictures.items()]
    pretraining = _pretraining(folder)
    if pretraining:
        parts.append("\n".join(f"- {_pretraining_line(name, run)}" for name, run in pretraining.items()))
    commands = [run["command"] for run in pretraining.values()] + [c["command"] for c in comparisons]
    parts.append(code_block("\n".join(dict.fromkeys(commands))))
    parts.append(f"*{measured_on(comparisons)}*")
    return "\n\n".join(parts)


def _groups_sentence(groups: Mapping[str, Any]) -> str:
    """Which classes are many-, medium- and few-shot."""
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
    """What was tried on held-out images: a table of what differs from the first run, and the commands of that run."""
    if not file.is_file():
        return ""
    tried = list(json.loads(file.read_text(encoding="utf-8")).values())
    base = tried[0]
    rows = [
        [
            "; ".join(words for stage in STAGES if (words := changed(run[stage], base[stage], stage)))
            or "nothing: the commands below",
            *(percent(run[measure]) for measure in ("many", "medium", "few", "accuracy")),
        ]
        for run in tried
    ]
    table = markdown_table(("What differs", "Many", "Med.", "Few", "Acc"), rows, "lrrrr")
    commands = code_block("\n".join(base[stage] for stage in STAGES))
    return f"{table}\n\n{commands}\n\n*{measured_on(tried)}*"


def changed(command: str, base: str, stage: str) -> str:
    """The options of a command that differ from those of another; a command leaves out defaults."""
    options, others = ({words.split()[0]: words for words in text.split(" --")[1:]} for text in (command, base))
    defaults = {field.name: field.default for field in dataclasses.fields(STAGES[stage])}
    differing = [
        options.get(name) or f"{name} {defaults.get(name, 'as by default')}"
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
    """Machine and versions, each once."""
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
    """What stands between the README's marks: macro and few-shot accuracy of the main losses on every dataset."""
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
    """The README with another text between its marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{section}{END}{after}"


def add(folder: Path, output_dir: Path) -> None:
    """Copy what a `livt compare` or a `livt pretrain` measured, or a `livt finetune` into the folder held-out.

    Raises:
        ValueError: it is the output folder of none of these, or of an unfinished one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.name == HELD_OUT:
        _add_tried(folder / TRIED, output_dir)
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
        raise ValueError(f"{output_dir}: it is no output folder of a finished `livt compare` or `livt pretrain`")


def _add_tried(file: Path, output_dir: Path) -> None:
    record = read_run(output_dir)
    if record is None or not (output_dir / "results.json").is_file():
        raise ValueError(f"{output_dir}: it is no output folder of a finished `livt finetune`")
    start = record["arguments"]["pretrained"]
    autoencoder = read_run(Path(start))
    if autoencoder is None:
        raise ValueError(f"{start}: it is no folder from here, and {output_dir} was trained from it")
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
    parser.add_argument("--add", choices=[*SETS, HELD_OUT], metavar="FOLDER", help="in model_cards/comparisons/")
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
