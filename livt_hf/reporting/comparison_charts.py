"""Charts that compare runs: accuracy by loss, by epoch and by model size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..losses import BALANCED_LOSSES, SHORT_NAMES
from ..prior import GROUP_NAMES, describe_groups
from .blocks import percent
from .certainty import interval_of
from .chart_style import GRID, GROUP_COLORS, INK, MUTED, NARROW, WIDE, clean_axes, fitted, wrapped

# Color-blind safe (Okabe and Ito, without yellow, with dark colors added).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b6472", "#8c510a", "#7b3294", "#1f2933")
MEASURES = (*GROUP_NAMES, "accuracy")
TEXT, SMALL = 10, 9  # points

Curve = Mapping[float, float]  # accuracy in percent by epoch


def accuracy_figure(
    bars: Sequence[Mapping[str, Any]],
    title: str,
    groups: Mapping[str, str] | None = None,
    intervals: str = "",
    width: float = WIDE,
    measures: Sequence[str] = MEASURES,
) -> Figure:
    """Accuracy of each run, in all shot groups and overall, a panel each; the best of a panel in bold.

    Args:
        bars: one per run: ``name``, of one or two lines; ``many``, ``medium``, ``few``, ``accuracy`` in percent or
            None; ``intervals``, ``{measure: (low, high)}``, of those that have one.
        groups: the groups in words, from `describe_groups`.
        intervals: what the intervals are.
        width: of the figure in inches; a narrow one has two panels in a row.
        measures: those shown.
    """
    columns = len(measures) if width > NARROW else 2
    rows, size = -(-len(measures) // columns), TEXT if width > NARROW else SMALL
    names = [bar["name"] if width > NARROW else _folded(bar["name"]) for bar in bars]
    lines = max(1 + name.count("\n") for name in names)
    height = (0.22 + 0.14 * lines) * len(bars) + 0.5 + 0.3 * bool(groups)
    figure = _figure(width, rows * height + 0.7, title)
    y = np.arange(len(bars))
    grid = figure.subplots(rows, columns, sharey=True, sharex=True)
    for axes, measure in zip(grid.flat, measures, strict=True):
        values = [bar[measure] for bar in bars]
        best = max((value for value in values if value is not None), default=None)
        axes.barh(y, [value or 0.0 for value in values], 0.68, color=GROUP_COLORS[measure], linewidth=0)
        for place, (bar, value) in enumerate(zip(bars, values, strict=True)):
            low, high = (min(max(end, 0), 100) for end in bar["intervals"].get(measure, (value or 0, value or 0)))
            if high > low:
                axes.plot((low, high), (place, place), color=INK, linewidth=1.2)
            look = {"va": "center_baseline", "fontsize": size, "color": INK}
            axes.text(high + 3, place, percent(value), weight="bold" if value == best else "normal", **look)
        name = "all images" if measure == "accuracy" else f"{measure}-shot"
        words = (groups or {}).get(measure, "").replace(" training", "\ntraining")
        axes.set_title(name + f"\n{words}" * bool(words), loc="left", fontsize=SMALL, color=INK)
        axes.set_yticks(y, names, parse_math=False)
        axes.set_xlim(0, 132 if width > NARROW else 150)
        axes.set_xticks((0, 50, 100))
        clean_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.tick_params(axis="x", labelsize=SMALL)
        axes.tick_params(axis="y", labelsize=size)
    axes.set_ylim(len(bars) - 0.5, -0.5)  # the first run at the top
    words = f"accuracy (%); lines: {intervals}" if intervals else "accuracy (%)"
    figure.supxlabel(words, fontsize=SMALL, color=MUTED)
    return figure


def _folded(name: str) -> str:
    return "\n".join(wrapped(line, 14) for line in name.split("\n"))


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure with a title, for which it is made higher."""
    points = 12 if width > NARROW else 11
    title = fitted(title, width, points, margin=6)
    figure = Figure(figsize=(width, height + 0.18 * title.count("\n")), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=points, fontweight="bold", color=INK)
    return figure


def quickstart_figure(rows: Sequence[Mapping[str, Any]], width: float = WIDE) -> Figure:
    """The chart of the README: accuracy of each run, with the story in its title.

    Args:
        rows: results.json of the quickstart's runs, with 95 % confidence intervals if they have them.
        width: of the figure in inches; a narrow one shows few-shot and overall accuracy only.
    """
    bars: list[dict[str, Any]] = []
    few: dict[str, list[float]] = {}
    for row in rows:
        kind = "balanced" if row["loss"] in BALANCED_LOSSES else "standard"
        name = SHORT_NAMES[row["loss"]] + (f" ({kind})" if row["pretrained"] else ",\nnot pretrained")
        known = {measure: interval for measure in MEASURES if (interval := interval_of(row, measure)) is not None}
        bars.append({"name": name, **{measure: row[measure] for measure in MEASURES}, "intervals": known})
        few.setdefault(kind if row["pretrained"] else "none", []).append(row["few"])
    title = (
        f"Rare digits recognized: {_range(few['standard'])} % with standard losses, {_range(few['balanced'])} % with "
        f"balanced losses, {_range(few['none'])} % without masked pretraining"
    )
    intervals = "95 % confidence intervals" if any(bar["intervals"] for bar in bars) else ""
    words, measures = describe_groups(rows[0]["groups"]["definition"]), MEASURES if width > NARROW else MEASURES[-2:]
    return accuracy_figure(bars, title, words, intervals, width, measures)


def _range(values: Sequence[float]) -> str:
    """ "0.0 to 42.5", or one number."""
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


def convergence_figure(panels: Mapping[str, Mapping[str, Sequence[Curve]]], split: str, width: float = WIDE) -> Figure:
    """Accuracy by epoch: mean over seeds as a line with its loss at the end, range over seeds as a band.

    Args:
        panels: ``{title: {loss: [curve of each seed]}}``; drawn at the epochs that all seeds of a loss have.
        split: evaluated split, for the axis label.
        width: of the figure in inches; a narrow one has one panel in a row.
    """
    columns = min(len(panels), 2 if width > NARROW else 1)
    rows = -(-len(panels) // columns)
    figure = _figure(width, 0.6 + 3.0 * rows, f"Accuracy on the {split} split during training")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colors = _colors(loss for curves in panels.values() for loss in curves)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    highest = max(max(curve.values()) for curves in panels.values() for seeds in curves.values() for curve in seeds)
    for index, (axes, (title, curves)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        axes.set_ylim(0, min(1.08 * highest, 102) or 1)
        ends = []
        for loss, of_seeds in curves.items():
            epochs = sorted(set.intersection(*map(set, of_seeds)))
            accuracy = np.array([[curve[epoch] for epoch in epochs] for curve in of_seeds])  # (seeds, epochs)
            mean, marker = accuracy.mean(axis=0), "o" if len(epochs) < 30 else None
            axes.plot(epochs, mean, color=colors[loss], linewidth=1.8, marker=marker, markersize=3)
            if len(of_seeds) > 1:
                low, high = accuracy.min(axis=0), accuracy.max(axis=0)
                axes.fill_between(epochs, low, high, color=colors[loss], alpha=0.16, linewidth=0)
            ends.append((epochs[-1], float(mean[-1]), loss, colors[loss]))
        label_ends(axes, ends, 2.2)
        axes.set_title(title, loc="left", fontsize=TEXT, color=INK, parse_math=False)
        axes.set_xlim(left=0)
        axes.set_ylabel(f"{split} accuracy (%)")
        axes.label_outer()
        if index + columns >= len(panels):  # last of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch")
        clean_axes(axes)
    return figure


def model_size_figure(rows: Sequence[Mapping[str, Any]], width: float = WIDE) -> Figure:
    """Accuracy by number of parameters: one line per loss and pretraining, error bars over seeds.

    Args:
        rows: ``name``, ``pretraining``, ``parameters``, and ``accuracy`` as ``{"mean", "std" or None}`` in percent.
        width: of the figure in inches.
    """
    figure = _figure(width, 4.2, "Test accuracy by model size")
    axes = figure.subplots()
    lines: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["parameters"]):
        lines.setdefault((row["name"], row["pretraining"] != "none"), []).append(row)
    colors = _colors(row["name"] for row in rows)
    both, ends = len({pretrained for _, pretrained in lines}) > 1, []
    for (name, pretrained), members in lines.items():
        x, means = [row["parameters"] / 1e6 for row in members], [row["accuracy"]["mean"] for row in members]
        axes.errorbar(
            x,
            means,
            yerr=[row["accuracy"]["std"] or 0 for row in members],
            color=colors[name],
            linestyle="-" if pretrained or not both else "--",
            linewidth=1.8,
            marker="o",
            markersize=4,
            capsize=2,
        )
        text = f"{name}, {'pretrained' if pretrained else 'from scratch'}" if both else name
        ends.append((x[-1], means[-1], text, colors[name]))
    sizes = sorted({row["parameters"] / 1e6 for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters (millions, log scale)")
    axes.set_ylabel("accuracy (%)")
    label_ends(axes, ends, 3.0)
    clean_axes(axes)
    return figure


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Name lines at their right ends, names that would overlap moved apart.

    Args:
        ends: x and y of the last point, the name, and the color of each line. The limits of the y axis are set.
        height: of the axes in inches, about.
    """
    low, high = axes.get_ylim()
    step = (high - low) * 1.25 * TEXT / 72 / height
    places: list[float] = []
    ranked = sorted(ends, key=lambda end: end[1])
    for _, y, *_ in ranked:
        places.append(max(y, places[-1] + step) if places else y)
    limit = high - step / 2
    for rank in reversed(range(len(places))):  # moves down what left the axes
        places[rank] = min(places[rank], limit)
        limit = places[rank] - step
    right = max(x for x, *_ in ends)
    for (_, y, name, color), place in zip(ranked, places, strict=True):
        axes.annotate(
            name,
            (right, y),
            (1.03, place),
            xycoords="data",
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=TEXT,
            color=INK,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 1.0,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 4,
            },
        )


def _colors(names: Any) -> dict[str, str]:
    return dict(zip(dict.fromkeys(names), cycle(COLORS), strict=False))
