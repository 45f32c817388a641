"""Numbers of each class: accuracy, precision and F1, and the confusion matrix, as tables, CSV files and a chart."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..prior import ClassPrior
from .blocks import Table, counted, csv_cell, percent
from .chart_style import GRID, GROUP_COLORS, INK, MUTED, WIDE, add_tooltip, clean_axes, fitted, short_names
from .charts import are_named

PER_CLASS, CONFUSION_CSV = "per_class.csv", "confusion.csv"
CONFUSION, CONFUSION_CAPTION = "confusion.png", "Confusion matrix: predicted classes of the images of each class"
MAX_NUMBERED = 12  # classes, up to which the cells have room for a number
LARGEST_FIRST = "Classes are ordered from the largest to the smallest."


@dataclass(frozen=True)
class ClassResult:
    """What was measured of one class; percentages are None where they are undefined."""

    name: str
    group: str
    training_images: int
    test_images: int
    predicted: int
    recall: float | None
    precision: float | None
    f1: float | None


def class_results(results: Mapping[str, Any]) -> list[ClassResult]:
    """Every class, largest first. The accuracy of a class is its recall.

    Precision is undefined for a class that was never predicted, recall and F1 for one without test images.
    """
    prior = ClassPrior(results["class_counts"])
    members = prior.groups(**results["groups"]["definition"])
    group_of = {int(label): group for group, labels in members.items() for label in labels}
    found = []
    for label in np.argsort(-prior.counts, kind="stable").tolist():
        name = prior.names[label]
        tested, predicted = results["test_counts"][name], results["predicted_counts"][name]
        recall = results["per_class"][name]
        hits = round((recall or 0.0) * tested / 100)
        found.append(
            ClassResult(
                name,
                group_of[label],
                int(prior.counts[label]),
                tested,
                predicted,
                recall,
                100 * hits / predicted if predicted else None,
                200 * hits / (tested + predicted) if tested else None,
            )
        )
    return found


def class_table(results: Mapping[str, Any]) -> Table:
    """The numbers of each class, to sort."""
    header = (
        "Class",
        "Training images",
        "Group",
        "Test images",
        "Predicted",
        "Accuracy (%)",
        "Precision (%)",
        "F1 (%)",
    )
    rows = [
        (
            of.name,
            f"{of.training_images:,}",
            of.group,
            f"{of.test_images:,}",
            f"{of.predicted:,}",
            *map(percent, (of.recall, of.precision, of.f1)),
        )
        for of in class_results(results)
    ]
    return Table(header, rows, "lrlrrrrr", "sortable")


def per_class_csv(results: Mapping[str, Any]) -> str:
    """The text of per_class.csv: percentages with four decimals, empty where undefined."""
    header = ["class", "group", "training_images", "test_images", "predicted", "accuracy", "precision", "f1"]
    rows = (
        (
            csv_cell(of.name),
            of.group,
            of.training_images,
            of.test_images,
            of.predicted,
            *("" if value is None else round(value, 4) for value in (of.recall, of.precision, of.f1)),
        )
        for of in class_results(results)
    )
    return _csv([header, *rows])


def confusion_csv(results: Mapping[str, Any]) -> str:
    """The text of confusion.csv: images by true class (rows) and predicted class (columns), largest class first."""
    names = [of.name for of in class_results(results)]
    rows = ([csv_cell(true), *(results["confusion"][true].get(name, 0) for name in names)] for true in names)
    return _csv([["true class", *map(csv_cell, names)], *rows])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def confusion_figure(results: Mapping[str, Any], width: float = WIDE) -> Figure:
    """The confusion matrix in percent of each row: right predictions in blue, mistakes in red, the darker the more.

    Args:
        results: with ``confusion`` from `livt_hf.metrics.class_confusion`.
        width: at most, of the figure in inches; a narrow one names fewer classes.
    """
    names = [of.name for of in class_results(results)]
    place_of = {name: place for place, name in enumerate(names)}
    classes, is_named = len(names), are_named(len(names), width)
    side = 4.0 if classes <= 4 else 6.4 if classes <= MAX_NUMBERED else 8.6
    side = min(side, width)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    for true, row in results["confusion"].items():
        total = sum(row.values())
        for predicted, images in row.items():
            share = 100 * images / total
            x, y = place_of[predicted], place_of[true]
            color = GROUP_COLORS["many" if true == predicted else "few"]
            cell = Rectangle((x - 0.5, y - 0.5), 1, 1, color=color, alpha=0.2 + 0.8 * share / 100, linewidth=0)
            add_tooltip(
                axes.add_patch(cell), f"{true} → {predicted}: {share:.1f} % of the class, {counted(images, 'image')}"
            )
            if classes <= MAX_NUMBERED:
                ink = "#ffffff" if share >= 50 else INK
                axes.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=9, color=ink)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal")
    if is_named:
        short = short_names(names)
        axes.set_xticks(range(classes), short, rotation=90, fontsize=9, parse_math=False)
        axes.set_yticks(range(classes), short, fontsize=9, parse_math=False)
        for line in range(classes + 1):
            axes.axhline(line - 0.5, color=GRID, linewidth=0.6, zorder=0)
            axes.axvline(line - 0.5, color=GRID, linewidth=0.6, zorder=0)
    else:
        ticks = range(0, classes, 10 if classes <= 100 else 20)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [str(tick + 1) for tick in ticks])
    rank = "class" if is_named else "rank of the class by training images"
    axes.set_xlabel(f"predicted {rank}")
    axes.set_ylabel(f"true {rank}")
    axes.set_title(fitted("Images by true and predicted class (% of the row)", side, margin=90))
    clean_axes(axes)
    axes.grid(visible=False)
    axes.spines[:].set(visible=not is_named, color=MUTED)
    return figure
