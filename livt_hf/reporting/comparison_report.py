"""What `livt compare` makes of its runs: mean and spread over seeds, the paper's table, pictures and the report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..losses import SHORT_NAMES
from ..metrics import describe_groups
from .blocks import escape_markdown, markdown_table
from .comparison_charts import plot_comparison, plot_convergence, plot_model_size
from .evaluation_report import percent
from .provenance import measurement

POST_HOC_NAMES = {"logit_adjustment": "LA", "tau_norm": "tau-norm"}
MEASURES = {
    "many": "Many",
    "medium": "Med.",
    "few": "Few",
    "accuracy": "Acc",
    "macro_accuracy": "Macro",
    "ece": "ECE",
    "mce": "MCE",
}
LOWER_IS_BETTER = ("ece", "mce")


def summarize(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pretraining, size and loss: mean and sample standard deviation (n - 1) over its runs.

    Args:
        runs: results of runs (results.json), each with "pretraining", the words for what it started from, and
            "post_hoc", what was done to the trained model, if anything.

    Returns:
        ``{"pretraining", "parameters", "loss", "post_hoc", "seeds": [...], "accuracy": {"mean", "std"}, ...}``, with
        all of `MEASURES`; "std" is None for a single run, both are None where a run has no such figure.
    """
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for run in runs:
        key = (run["pretraining"], run["parameters"], run["loss"], run.get("post_hoc"))
        rows.setdefault(key, []).append(run)
    return [
        {
            "pretraining": pretraining,
            "parameters": parameters,
            "loss": loss,
            "post_hoc": post_hoc,
            "seeds": [run["seed"] for run in members],
            **{measure: _spread([run[measure] for run in members]) for measure in MEASURES},
        }
        for (pretraining, parameters, loss, post_hoc), members in rows.items()
    ]


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def shown_measures(accuracies: Iterable[tuple[float, float | None]]) -> dict[str, str]:
    """`MEASURES`; without the macro accuracy where it is the accuracy, as on a test set with equally large classes.

    Args:
        accuracies: accuracy and macro accuracy of everything that is shown.
    """
    if any(macro is not None and abs(accuracy - macro) > 1e-6 for accuracy, macro in accuracies):
        return MEASURES
    return {measure: name for measure, name in MEASURES.items() if measure != "macro_accuracy"}


def row_name(row: Mapping[str, Any]) -> str:
    """Loss, and what was done after the training."""
    return SHORT_NAMES[row["loss"]] + (f" + {POST_HOC_NAMES[row['post_hoc']]}" if row["post_hoc"] else "")


# Tables

_MARKDOWN = {"bold": "**{}**", "pm": " ± ", "up": " ↑", "down": " ↓", "dash": "–"}
_LATEX = {"bold": r"\textbf{{{}}}", "pm": r" $\pm$ ", "up": r" $\uparrow$", "down": r" $\downarrow$", "dash": "--"}


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The paper's table in Markdown, of what `summarize` returned; the best mean of each column in bold."""
    header, cells = _table(rows, _MARKDOWN)
    cells = [[escape_markdown(row[1]) if place == 1 else cell for place, cell in enumerate(row)] for row in cells]
    return markdown_table(header, cells, "lll" + "r" * (len(header) - 3))


def latex_table(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""The same for LaTeX: a tabular with the rules of booktabs, ``\midrule`` between sizes and pretrainings."""
    header, cells = _table(rows, _LATEX)
    lines = [
        r"\begin{tabular}{lll" + "r" * (len(header) - 3) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
    ]
    for place, row in enumerate(cells):
        if place and row[:2] != cells[place - 1][:2]:
            lines.append(r"\midrule")
        lines.append(" & ".join([row[0], _escape_latex(row[1]), *row[2:]]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    measures = shown_measures((row["accuracy"]["mean"], row["macro_accuracy"]["mean"]) for row in rows)
    best = {}
    for measure in measures:
        means = [row[measure]["mean"] for row in rows if row[measure]["mean"] is not None]
        best[measure] = (min if measure in LOWER_IS_BETTER else max)(means, default=None)

    def cell(figure: Mapping[str, float | None], measure: str) -> str:
        if figure["mean"] is None:
            return marks["dash"]
        mean = percent(figure["mean"])
        mean = marks["bold"].format(mean) if figure["mean"] == best[measure] else mean
        return mean if figure["std"] is None else f"{mean}{marks['pm']}{percent(figure['std'])}"

    arrows = {measure: marks["down" if measure in LOWER_IS_BETTER else "up"] for measure in MEASURES}
    header = ["Size", "Pretraining", "Loss", *(name + arrows[measure] for measure, name in measures.items())]
    cells = [
        [
            f"{row['parameters'] / 1e6:.2f}M",
            row["pretraining"],
            row_name(row),
            *(cell(row[measure], measure) for measure in measures),
        ]
        for row in rows
    ]
    return header, cells


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    line = " ".join(str(text).split())
    return "".join(
        special.get(character, f"\\{character}" if character in "&%$#_{}" else character) for character in line
    )


# Report


def write_comparison(output_dir: Path, comparison: Mapping[str, Any]) -> None:
    """Tables, pictures and report; results.json last."""
    rows = comparison["rows"]
    pictures = draw_comparison(output_dir, rows, comparison["runs"])
    write_text(output_dir / "table.md", comparison_table(rows) + "\n")
    write_text(output_dir / "table.tex", latex_table(rows))
    write_text(output_dir / "report.md", _report(comparison, pictures))
    write_text(output_dir / "results.json", json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")


def draw_comparison(
    output_dir: Path, rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Draw accuracy.png and, where there is something to see, convergence.png and model_size.png.

    Args:
        output_dir: where they go.
        rows: what the table shows, of `summarize`.
        runs: the runs of these rows, with their curves.

    Returns:
        The caption of each file.
    """
    panels = {(row["pretraining"], row["parameters"]): _panel_name(row, rows) for row in rows}
    captions = {"accuracy.png": "Accuracy of each loss, with the spread over seeds."}
    bars = [_bar(row, panels[row["pretraining"], row["parameters"]]) for row in rows]
    plot_comparison(bars, output_dir / "accuracy.png")
    trained = [run for run in runs if not run["post_hoc"]]
    if all(len(run["curve"]["epoch"]) > 1 for run in trained):
        captions["convergence.png"] = _convergence_caption(trained)
        curves: dict[str, dict[str, list[dict[float, float]]]] = {}
        for run in trained:
            curve = dict(zip(run["curve"]["epoch"], run["curve"]["accuracy"], strict=True))
            losses = curves.setdefault(panels[run["pretraining"], run["parameters"]], {})
            losses.setdefault(SHORT_NAMES[run["loss"]], []).append(curve)
        plot_convergence(curves, trained[0]["curve"]["split"], output_dir / "convergence.png")
    sizes = {(row["pretraining"] == "none", row["parameters"]) for row in rows}
    if len(sizes) > len({from_scratch for from_scratch, _ in sizes}):
        captions["model_size.png"] = "Accuracy over the number of parameters."
        plot_model_size([{**row, "name": row_name(row)} for row in rows], output_dir / "model_size.png")
    return captions


def _bar(row: Mapping[str, Any], panel: str) -> dict[str, Any]:
    measures = ("many", "medium", "few", "accuracy")
    return {
        "name": "\n".join(filter(None, (row_name(row), *panel.split(", ")))),
        **{measure: row[measure]["mean"] for measure in measures},
        "spread": {measure: row[measure]["std"] for measure in measures},
    }


def _panel_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Pretraining and size of a row, as far as they differ between the rows."""
    words = []
    if len({other["pretraining"] for other in rows}) > 1:
        words.append("no pretraining" if row["pretraining"] == "none" else row["pretraining"])
    if len({other["parameters"] for other in rows}) > 1:
        words.append(f"{row['parameters'] / 1e6:.3g}M")
    return ", ".join(words)


def _convergence_caption(runs: Sequence[Mapping[str, Any]]) -> str:
    caption = f"Accuracy on the {runs[0]['curve']['split']} split while training."
    if len({run["seed"] for run in runs}) > 1:
        caption = f"{caption[:-1]}: the mean over seeds, and the range from the lowest to the highest."
    if runs[0]["curve"]["split"] == "test":
        caption += " Nothing is chosen by it: the table holds the last epoch, and all options were set before."
    return caption


def _post_hoc_sentence(runs: Sequence[Mapping[str, Any]]) -> str:
    words = {
        "logit_adjustment": " LA: the trained model after post-hoc logit adjustment to uniform class shares.",
        "tau_norm": " tau-norm: the trained model's class weights over their norms (tau 1), without biases; "
        "their scale is arbitrary, and with it ECE and MCE.",
    }
    used = {run["post_hoc"] for run in runs}
    return "".join(sentence for method, sentence in words.items() if method in used)


def _report(comparison: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    runs, counts = comparison["runs"], comparison["class_counts"]
    measures = shown_measures((run["accuracy"], run["macro_accuracy"]) for run in runs)
    definition = describe_groups(comparison["groups"]["definition"])
    seeds = sorted({run["seed"] for run in runs})
    spread = f"One seed ({seeds[0]}): a difference of a few points may be chance."
    if len(seeds) > 1:
        names = ", ".join(map(str, seeds))
        spread = f"Mean ± sample standard deviation (n - 1) over the seeds {names}, on the same training images."
    parts = [
        f"# Losses compared on {escape_markdown(comparison['dataset'])}",
        f"{sum(counts.values()):,} training images of {len(counts)} classes, the largest with {max(counts.values()):,} "
        f"and the smallest with {min(counts.values()):,}; tested on the {comparison['images']:,} images of the "
        f"{comparison['split']} split. Accuracies and calibration errors in percent, of models after the last epoch, "
        f"best in bold. {spread}",
        comparison_table(comparison["rows"]),
        f"Groups: {'; '.join(f'{name}: {words}' for name, words in definition.items())}. All options but the loss, the "
        f"seed and what the table names are the same for every run.{_post_hoc_sentence(runs)}",
        *(f"![{text.split('.')[0]}]({file})\n\n*{text}*" for file, text in pictures.items()),
        "## Every run",
        markdown_table(
            ("Run", *measures.values()),
            [(escape_markdown(run["name"]), *(percent(run[measure]) for measure in measures)) for run in runs],
            "l" + "r" * len(measures),
        ),
        "## How it was measured",
        measurement(comparison),
    ]
    return "\n\n".join(parts) + "\n"
