"""Reports that compare runs: mean and standard deviation over seeds, the paper's table, charts.

`livt compare` writes `write_comparison`'s files, `livt quickstart` those of `quickstart_report`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..class_names import printable
from ..files import write_text
from ..losses import LOSS_TITLES, SHORT_NAMES
from ..metrics import describe_groups
from ..metrics.bootstrap import FEWEST_DIFFERENT
from .blocks import Block, Picture, Section, Strong, Table, counted, data_uri, escape_html, percent, to_markdown
from .chart_style import as_svg, save_png
from .comparison_charts import accuracy_figure, convergence_figure, model_size_figure, quickstart_figure
from .comparison_verdict import leaders, verdict
from .pages import Tile, html_page, markdown_page
from .provenance import measurement_blocks, public_name

Charts = dict[str, tuple[str, Figure]]  # file -> caption, figure

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


# Tables


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
    first = Strong(percent(mean)) if mean == best else percent(mean)
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
    text = rf"\textbf{{{percent(mean)}}}" if mean == best else percent(mean)
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


# Report


def write_comparison(output_dir: Path, comparison: Mapping[str, Any]) -> None:
    """Write table.md, table.tex, charts, report.md, report.html, and last results.json.

    Args:
        output_dir: an existing folder.
        comparison: what `compare` returns.
    """
    rows = comparison["rows"]
    charts = comparison_charts(rows, comparison["runs"], comparison["groups"]["definition"])
    explained = difference_sentences(comparison)
    write_text(output_dir / "table.md", "\n\n".join([comparison_table(rows), *map(to_markdown, explained)]) + "\n")
    write_text(output_dir / "table.tex", latex_table(rows) + "".join(f"% {sentence}\n" for sentence in explained))
    for file, (_, figure) in charts.items():
        save_png(figure, output_dir / file)
    title = f"Loss comparison on {public_name(comparison['dataset'])}"
    lead = verdict_sentences(comparison)
    measured = f"{counted(comparison['images'], 'image')} of the {comparison['split']} split"
    summary = f"{counted(len(comparison['runs']), 'run')}, evaluated on {measured}."
    sections = comparison_sections(comparison, charts)
    write_text(output_dir / "report.md", markdown_page(title, summary, sections, lead))
    write_text(output_dir / "report.html", html_page(title, summary, _tiles(rows), sections, lead))
    write_text(output_dir / "results.json", json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")


def draw_comparison(
    output_dir: Path,
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Draw the charts of `comparison_charts` into an existing folder; file name -> caption."""
    charts = comparison_charts(rows, runs, groups)
    for file, (_, figure) in charts.items():
        save_png(figure, output_dir / file)
    return {file: caption for file, (caption, _) in charts.items()}


def comparison_charts(
    rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Any] | None = None
) -> Charts:
    """accuracy.png, convergence.png (of more than one epoch) and model_size.png (of more than one size).

    Args:
        rows: from `summarize`.
        runs: the runs of these rows, with their curves.
        groups: definition of the shot groups, which the first chart then states.

    Returns:
        File name -> caption and figure, for the charts that can be drawn.
    """
    panels = {(row["pretraining"], row["parameters"]): _panel_name(row, rows) for row in rows}
    spread = any(len(row["seeds"]) > 1 for row in rows)
    caption = "Accuracy of each loss by shot group"
    caption += "; error bars: standard deviation over seeds." if spread else "."
    bars = [_bar(row, panels[row["pretraining"], row["parameters"]]) for row in rows]
    title, intervals = "Test accuracy by shot group", "standard deviation over seeds" if spread else ""
    words = describe_groups(groups) if groups else None
    charts = {"accuracy.png": (caption, accuracy_figure(bars, title, words, intervals))}
    trained = [run for run in runs if not run["post_hoc"]]
    if all(len(run["curve"]["epoch"]) > 1 for run in trained):
        curves: dict[str, dict[str, list[dict[float, float]]]] = {}
        for run in trained:
            curve = dict(zip(run["curve"]["epoch"], run["curve"]["accuracy"], strict=True))
            losses = curves.setdefault(panels[run["pretraining"], run["parameters"]], {})
            losses.setdefault(SHORT_NAMES[run["loss"]], []).append(curve)
        figure = convergence_figure(curves, trained[0]["curve"]["split"])
        charts["convergence.png"] = (_convergence_caption(trained), figure)
    sizes = {(row["pretraining"] == "none", row["parameters"]) for row in rows}
    if len(sizes) > len({from_scratch for from_scratch, _ in sizes}):
        figure = model_size_figure([{**row, "name": row_name(row)} for row in rows])
        charts["model_size.png"] = ("Accuracy by number of parameters.", figure)
    return charts


def _bar(row: Mapping[str, Any], panel: str) -> dict[str, Any]:
    measures = ("many", "medium", "few", "accuracy")
    intervals = {
        measure: (row[measure]["mean"] - row[measure]["std"], row[measure]["mean"] + row[measure]["std"])
        for measure in measures
        if row[measure]["std"]
    }
    name = "\n".join(filter(None, (row_name(row), panel)))
    return {"name": name, **{measure: row[measure]["mean"] for measure in measures}, "intervals": intervals}


def _panel_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Pretraining and size of a row, unless all rows share them."""
    words = []
    if len({other["pretraining"] for other in rows}) > 1:
        words.append("no pretraining" if row["pretraining"] == "none" else printable(row["pretraining"]))
    if len({other["parameters"] for other in rows}) > 1:
        words.append(f"{row['parameters'] / 1e6:.3g}M")
    return ", ".join(words)


def _convergence_caption(runs: Sequence[Mapping[str, Any]]) -> str:
    caption = f"Accuracy on the {runs[0]['curve']['split']} split during training"
    caption += ": mean and range over seeds." if len({run["seed"] for run in runs}) > 1 else "."
    if runs[0]["curve"]["split"] == "test":
        caption += " No model is selected by it: the table reports the last epoch, with options fixed in advance."
    return caption


def verdict_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """Which row is best, how surely, and what to use; empty for a single row."""
    rows = comparison["rows"]
    names = [_full_name(row, rows) for row in rows]
    differences = (comparison.get("differences") or {}).get("leaders", {})
    return verdict(rows, names, differences, describe_groups(comparison["groups"]["definition"])["few"])


def comparison_sections(comparison: Mapping[str, Any], charts: Charts) -> list[Section]:
    """The sections of the report.

    Args:
        comparison: what `compare` returns.
        charts: from `comparison_charts`, drawn into the folder of the report.
    """
    runs = comparison["runs"]
    measures = shown_measures((run["accuracy"], run["macro_accuracy"]) for run in runs)
    figures = [(run["name"], *(percent(run[measure]) for measure in measures)) for run in runs]
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) > 1:
        names = ", ".join(map(str, seeds))
        spread = f"Mean ± sample standard deviation (n - 1) over seeds {names}, on the same training images."
    else:
        spread = f"One seed ({seeds[0]}): a difference of a few points may be noise."
    pictures: list[Block] = []
    for file, (caption, figure) in charts.items():
        pictures += [Picture(caption.split(".")[0], file, as_svg(figure)), caption]
    return [
        Section(
            "Results",
            [
                f"{_data_sentence(comparison)} All results are from the last epoch. {spread}",
                comparison_block(comparison["rows"]),
                *difference_sentences(comparison),
                f"{_groups_sentence(comparison)} Runs differ only in the loss, the seed and what the table names."
                f"{_post_hoc_sentences(runs)}",
            ],
        ),
        *([Section("Charts", pictures)] if pictures else []),
        *_difference_sections(comparison),
        Section("Individual runs", [Table(("Run", *measures.values()), figures, "l" + "r" * len(measures))]),
        Section("Evaluation setup", measurement_blocks(comparison)),
    ]


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[Tile]:
    """The best rows, in large figures."""
    words = {"accuracy": ("all images", "all"), "macro_accuracy": ("all classes", "all"), "few": ("few-shot", "few")}
    return [
        (
            percent(rows[best][measure]["mean"]),
            escape_html(f"best on {words[measure][0]}: {_full_name(rows[best], rows)}"),
            words[measure][1],
        )
        for measure, (best, _) in leaders(rows).items()
    ]


def difference_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """What the marks in the table mean, and which rows could not be compared; empty for a single row."""
    rows, how = comparison["rows"], comparison.get("differences")
    if not how or len(rows) < 2:
        return []
    sentences = []
    if any(row["difference"] for row in rows):
        sentences.append(
            f"†: differs from {_full_name(rows[0], rows)}, the first row, beyond the {how['level']:g} % interval of a "
            f"paired bootstrap over the test images ({how['resamples']:,} resamples within classes, the same for all "
            "runs). This says how sure the difference is for these trained models, not how much another seed would "
            "change; of twenty figures without a difference, one is marked by chance. An accuracy is marked only if at "
            f"least {FEWEST_DIFFERENT} of its images are answered differently. MCE is not compared."
        )
    for row in rows:
        if row.get("not_compared"):
            sentences.append(f"{_full_name(row, rows)} is not compared with the first row: {row['not_compared']}.")
    return sentences


def _difference_sections(comparison: Mapping[str, Any]) -> list[Section]:
    rows = comparison["rows"]
    if len(rows) < 2 or not comparison.get("differences"):
        return []
    measures = shown_measures((row["accuracy"]["mean"], row["macro_accuracy"]["mean"]) for row in rows)
    shown = {measure: name for measure, name in measures.items() if measure != "mce"}
    cells = [
        (_full_name(row, rows), *(_difference((row["difference"] or {}).get(measure)) for measure in shown))
        for row in rows[1:]
    ]
    table = Table(("Row", *shown.values()), cells, "l" + "r" * len(shown))
    return [Section(f"Differences to {_full_name(rows[0], rows)}", ["In points, with 95 % intervals.", table])]


def _difference(of: Mapping[str, Any] | None) -> str:
    """ "+5.3 (+2.1 to +8.4) †"."""
    if of is None:
        return "–"
    difference, low, high = (round(value, 1) + 0.0 for value in (of["difference"], *of["interval"]))  # no -0.0
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" + (" †" if of["significant"] else "")


def _full_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss and post-hoc method, with pretraining and size where the rows differ in them."""
    panel = _panel_name(row, rows)
    return row_name(row) + (f" ({panel})" if panel else "")


def write_quickstart(
    output_dir: Path, rows: Sequence[Mapping[str, Any]], published: Mapping[str, Any], caption: str
) -> None:
    """Write comparison.png, report.md and report.html, beside reconstructions.png and the folder livt-digits.

    Args:
        rows: results of the runs, each with "pretraining".
        published: results of the run whose model is livt-digits.
        caption: of the reconstructions.
    """
    figure = quickstart_figure(rows)
    save_png(figure, output_dir / "comparison.png")
    losses = dict.fromkeys(row["loss"] for row in rows)
    names = "; ".join(f"{SHORT_NAMES[loss]}: {LOSS_TITLES[loss].split(' (')[0]}" for loss in losses)
    uri = data_uri((output_dir / "reconstructions.png").read_bytes())
    image = f'<img class="wide" alt="Original, masked and reconstructed digits" src="{uri}">'
    sections = [
        Section(
            "Results",
            [
                Picture("Accuracy of each run by shot group", "comparison.png", as_svg(figure)),
                f"{_data_sentence(published)} Seed {published['seed']}.",
                comparison_block(summarize(rows)),
                f"{names}. {_groups_sentence(published)}",
            ],
        ),
        Section(
            "Masked reconstructions",
            [caption, Picture("Original, masked and reconstructed digits", "reconstructions.png", image)],
        ),
        Section(
            "The published model",
            [
                "The folder livt-digits contains the Bal-BCE model with the pretrained encoder and its model card; its "
                "report.html lists every class."
            ],
        ),
        Section("Evaluation setup", measurement_blocks(rows[0])),
    ]
    title, subtitle = "LiVT on long-tailed digits", "scikit-learn's digits, made long-tailed: one model per loss."
    write_text(output_dir / "report.md", markdown_page(title, subtitle, sections))
    write_text(output_dir / "report.html", html_page(title, subtitle, [], sections))


def _data_sentence(results: Mapping[str, Any]) -> str:
    """Training and test images; ``results`` of a run or a comparison."""
    counts = results["class_counts"]
    return (
        f"{sum(counts.values()):,} training images in {len(counts):,} classes ({max(counts.values()):,} to "
        f"{min(counts.values()):,} per class); evaluated on the {results['images']:,} images of the {results['split']} "
        "split. Accuracies and calibration errors in percent, best in bold."
    )


def _groups_sentence(results: Mapping[str, Any]) -> str:
    definition = describe_groups(results["groups"]["definition"])
    return f"Groups: {'; '.join(f'{name}: {words}' for name, words in definition.items())}."


def _post_hoc_sentences(runs: Sequence[Mapping[str, Any]]) -> str:
    sentences = {
        "logit_adjustment": " LA: post-hoc logit adjustment of the trained model to a uniform target prior.",
        "tau_norm": " tau-norm: class weights divided by their norms (tau 1), biases dropped; the logit scale, "
        "and with it ECE and MCE, is arbitrary.",
    }
    used = {run["post_hoc"] for run in runs}
    return "".join(sentence for method, sentence in sentences.items() if method in used)
