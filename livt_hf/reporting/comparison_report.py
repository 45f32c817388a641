"""The report of `livt compare`: which loss is best, the table, charts, differences and their certainty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..class_names import printable
from ..files import write_text
from ..losses import SHORT_NAMES
from ..metrics import describe_groups
from ..metrics.bootstrap import FEWEST_DIFFERENT
from .blocks import Block, Picture, Section, Table, counted, escape_html, percent, to_markdown
from .chart_style import Chart, write_chart
from .comparison_charts import accuracy_figure, convergence_figure, model_size_figure
from .comparison_table import (
    comparison_block,
    comparison_table,
    latex_table,
    row_name,
    shown_measures,
)
from .comparison_verdict import leaders, verdict
from .pages import Tile, html_page, markdown_page
from .provenance import measurement_blocks, public_name

Charts = dict[str, tuple[str, Chart]]  # file -> caption, chart


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
    pictures = {file: (caption, write_chart(chart, output_dir / file)) for file, (caption, chart) in charts.items()}
    title = f"Loss comparison on {public_name(comparison['dataset'])}"
    lead = verdict_sentences(comparison)
    measured = f"{counted(comparison['images'], 'image')} of the {comparison['split']} split"
    summary = f"{counted(len(comparison['runs']), 'run')}, evaluated on {measured}."
    sections = comparison_sections(comparison, pictures)
    write_text(output_dir / "report.md", markdown_page(title, summary, sections, lead))
    write_text(output_dir / "report.html", html_page(title, summary, _tiles(rows), sections, lead))
    write_text(output_dir / "results.json", json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")


def comparison_charts(
    rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Any] | None = None
) -> Charts:
    """accuracy.png, convergence.png (of more than one epoch) and model_size.png (of more than one size).

    Args:
        rows: from `summarize`.
        runs: the runs of these rows, with their curves.
        groups: definition of the shot groups, which the first chart then states.

    Returns:
        File name -> caption and chart, for the charts that can be drawn.
    """
    panels = {(row["pretraining"], row["parameters"]): _panel_name(row, rows) for row in rows}
    spread = any(len(row["seeds"]) > 1 for row in rows)
    caption = "Accuracy of each loss by shot group"
    caption += "; error bars: standard deviation over seeds." if spread else "."
    bars = [_bar(row, panels[row["pretraining"], row["parameters"]]) for row in rows]
    title, intervals = "Test accuracy by shot group", "standard deviation over seeds" if spread else ""
    words = describe_groups(groups) if groups else None
    charts: Charts = {"accuracy.png": (caption, partial(accuracy_figure, bars, title, words, intervals))}
    trained = [run for run in runs if not run["post_hoc"]]
    if all(len(run["curve"]["epoch"]) > 1 for run in trained):
        curves: dict[str, dict[str, list[dict[float, float]]]] = {}
        for run in trained:
            curve = dict(zip(run["curve"]["epoch"], run["curve"]["accuracy"], strict=True))
            losses = curves.setdefault(panels[run["pretraining"], run["parameters"]], {})
            losses.setdefault(SHORT_NAMES[run["loss"]], []).append(curve)
        chart = partial(convergence_figure, curves, trained[0]["curve"]["split"])
        charts["convergence.png"] = (_convergence_caption(trained), chart)
    sizes = {(row["pretraining"] == "none", row["parameters"]) for row in rows}
    if len(sizes) > len({from_scratch for from_scratch, _ in sizes}):
        chart = partial(model_size_figure, [{**row, "name": row_name(row)} for row in rows])
        charts["model_size.png"] = ("Accuracy by number of parameters.", chart)
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
    few = describe_groups(comparison["groups"]["definition"])["few"]
    return verdict(rows, names, differences, few, len(comparison["class_counts"]), comparison["images"])


def comparison_sections(comparison: Mapping[str, Any], charts: Mapping[str, tuple[str, str]]) -> list[Section]:
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
    for file, (caption, element) in charts.items():
        pictures += [Picture(caption.split(".")[0], file, element), caption]
    return [
        Section(
            "Results",
            [
                f"{data_sentence(comparison)} All results are from the last epoch. {spread}",
                comparison_block(comparison["rows"]),
                *difference_sentences(comparison),
                f"{groups_sentence(comparison)} Runs differ only in the loss, the seed and what the table names."
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


def data_sentence(results: Mapping[str, Any]) -> str:
    """Training and test images; ``results`` of a run or a comparison."""
    counts = results["class_counts"]
    return (
        f"{sum(counts.values()):,} training images in {len(counts):,} classes ({max(counts.values()):,} to "
        f"{min(counts.values()):,} per class); evaluated on the {results['images']:,} images of the {results['split']} "
        "split. Accuracies and calibration errors in percent, best in bold."
    )


def groups_sentence(results: Mapping[str, Any]) -> str:
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
