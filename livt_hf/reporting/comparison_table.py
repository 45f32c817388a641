"""The table of a comparison: one row per loss, pretraining and size, as Markdown and LaTeX."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..losses import SHORT_NAMES
from .blocks import Strong, Table, percent, to_markdown

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
    """One row per pretraining, size, loss and post-hoc method: mean and sample standard deviation (n - 1) of its runs.

    Args:
        runs: results of runs (results.json), each with "pretraining", the name of the pretrained model or "none", and,
            if the trained model was adjusted, "post_hoc", a key of `POST_HOC_NAMES`.

    Returns:
        ``{"pretraining", "parameters", "loss", "post_hoc", "seeds": [...], "accuracy": {"mean", "std"}, ...}``, with
        all of `MEASURES`; "std" is None for a single run, both are None if a run lacks the metric.
    """
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for run in runs:
        rows.setdefault(row_key(run), []).append(run)
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


def row_key(run: Mapping[str, Any]) -> tuple:
    """What the runs of a row, and the row, have in common."""
    return run["pretraining"], run["parameters"], run["loss"], run.get("post_hoc")


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def shown_measures(accuracies: Iterable[tuple[float, float | None]]) -> dict[str, str]:
    """`MEASURES`, without macro accuracy if it equals accuracy throughout, as on a balanced test set.

    Args:
        accuracies: (accuracy, macro accuracy) of all rows shown.
    """
    if any(macro is not None and abs(accuracy - macro) > 1e-6 for accuracy, macro in accuracies):
        return MEASURES
    return {measure: name for measure, name in MEASURES.items() if measure != "macro_accuracy"}


def row_name(row: Mapping[str, Any]) -> str:
    """Loss and post-hoc method."""
    return SHORT_NAMES[row["loss"]] + (f" + {POST_HOC_NAMES[row['post_hoc']]}" if row["post_hoc"] else "")


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summarize` as the paper's table in Markdown, the best mean of each column in bold."""
    return to_markdown(comparison_block(rows))


def comparison_block(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The same table as a block of a report."""
    measures, best = _columns(rows)
    header = ["Size", "Pretraining", "Loss", *(f"{name} {_ARROWS[key]}" for key, name in measures.items())]
    cells = [[*_names(row), *(_cell(row, measure, best[measure]) for measure in measures)] for row in rows]
    return Table(header, cells, "lll" + "r" * len(measures))


def _cell(row: Mapping[str, Any], measure: str, best: float | None) -> Any:
    mean, std = row[measure]["mean"], row[measure]["std"]
    if mean is None:
        return "–"
    first = Strong(percent(mean)) if percent(mean) == percent(best) else percent(mean)
    rest = ([f"± {percent(std)}"] if std is not None else []) + (["†"] if _differs(row, measure) else [])
    return (first, *rest) if rest else first


def latex_table(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""The same table in LaTeX with booktabs, ``\midrule`` between sizes and pretrained models."""
    measures, best = _columns(rows)
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    header = ["Size", "Pretraining", "Loss", *(f"{name} {arrows[_ARROWS[key]]}" for key, name in measures.items())]
    lines = [
        r"\begin{tabular}{lll" + "r" * len(measures) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
    ]
    for place, row in enumerate(rows):
        names = _names(row)
        if place and names[:2] != _names(rows[place - 1])[:2]:
            lines.append(r"\midrule")
        cells = (_latex_cell(row, measure, best[measure]) for measure in measures)
        lines.append(" & ".join([names[0], _escape_latex(names[1]), names[2], *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(row: Mapping[str, Any], measure: str, best: float | None) -> str:
    mean, std = row[measure]["mean"], row[measure]["std"]
    if mean is None:
        return "--"
    text = rf"\textbf{{{percent(mean)}}}" if percent(mean) == percent(best) else percent(mean)
    text += "" if std is None else rf" $\pm$ {percent(std)}"
    return text + (r"$^{\dagger}$" if _differs(row, measure) else "")


_ARROWS = {measure: "↓" if measure in LOWER_IS_BETTER else "↑" for measure in MEASURES}


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, float | None]]:
    """The measures shown, with their names, and the best mean of each."""
    measures = shown_measures((row["accuracy"]["mean"], row["macro_accuracy"]["mean"]) for row in rows)
    best = {}
    for measure in measures:
        means = [row[measure]["mean"] for row in rows if row[measure]["mean"] is not None]
        best[measure] = (min if measure in LOWER_IS_BETTER else max)(means, default=None)
    return measures, best


def _names(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['parameters'] / 1e6:.2f}M", row["pretraining"], row_name(row)]


def _differs(row: Mapping[str, Any], measure: str) -> bool:
    difference = (row.get("difference") or {}).get(measure)
    return bool(difference and difference["significant"])


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    line = " ".join(str(text).split())
    return "".join(
        special.get(character, f"\\{character}" if character in "&%$#_{}" else character) for character in line
    )
