"""Charts that compare runs: accuracy by loss, by epoch and by model size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..prior import GROUP_NAMES
from .chart_style import GROUP_COLORS, INK, clean_axes, save_png

# Color-blind safe (Okabe and Ito, without yellow, with dark colors added).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b6472", "#8c510a", "#7b3294", "#1f2933")
PANELS_PER_ROW = 2

Curve = Mapping[float, float]  # accuracy in percent by epoch


def plot_convergence(panels: Mapping[str, Mapping[str, Sequence[Curve]]], split: str, path: str | Path) -> None:
    """Draw accuracy by epoch: mean over seeds as a line, range over seeds as a band.

    Args:
        panels: ``{title: {loss: [curve of each seed]}}``; drawn at the epochs that all seeds of a loss have.
        split: evaluated split, for the axis label.
        path: PNG file to write.
    """
    columns = min(len(panels), PANELS_PER_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.2 + 4.6 * columns, 0.4 + 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colors = dict(
        zip(dict.fromkeys(loss for curves in panels.values() for loss in curves), cycle(COLORS), strict=False)
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for index, (axes, (title, curves)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for loss, of_seeds in curves.items():
            epochs = sorted(set.intersection(*map(set, of_seeds)))
            accuracy = np.array([[curve[epoch] for epoch in epochs] for curve in of_seeds])  # (seeds, epochs)
            look = {"color": colors[loss], "linewidth": 1.8, "marker": "o" if len(epochs) < 30 else None}
            axes.plot(epochs, accuracy.mean(axis=0), label=loss, markersize=3, **look)
            if len(of_seeds) > 1:
                axes.fill_between(
                    epochs, accuracy.min(axis=0), accuracy.max(axis=0), color=colors[loss], alpha=0.16, linewidth=0
                )
        axes.set_title(title, parse_math=False)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_ylabel(f"{split} accuracy (%)")
        axes.label_outer()
        if index + columns >= len(panels):  # last of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch")
        clean_axes(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=5, loc="outside upper center", labelcolor=INK)
    save_png(figure, path)


def plot_model_size(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy by number of parameters: one line per loss and pretraining, error bars over seeds.

    Args:
        rows: ``name``, ``pretraining``, ``parameters``, and ``accuracy`` as ``{"mean", "std" or None}`` in percent.
        path: PNG file to write.
    """
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["parameters"]):
        lines.setdefault((row["name"], row["pretraining"] != "none"), []).append(row)
    colors = dict(zip(dict.fromkeys(row["name"] for row in rows), cycle(COLORS), strict=False))
    both = len({pretrained for _, pretrained in lines}) > 1
    for (name, pretrained), members in sorted(lines.items(), key=lambda line: list(colors).index(line[0][0])):
        axes.errorbar(
            [row["parameters"] / 1e6 for row in members],
            [row["accuracy"]["mean"] for row in members],
            yerr=[row["accuracy"]["std"] or 0 for row in members],
            label=f"{name}, {'pretrained' if pretrained else 'from scratch'}" if both else name,
            color=colors[name],
            linestyle="-" if pretrained or not both else "--",
            linewidth=1.8,
            marker="o",
            markersize=4,
            capsize=2,
        )
    sizes = sorted({row["parameters"] / 1e6 for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters (millions, log scale)")
    axes.set_ylabel("accuracy (%)")
    figure.legend(frameon=False, ncols=4, loc="outside upper center", fontsize=9, labelcolor=INK)
    clean_axes(axes)
    save_png(figure, path)


def plot_comparison(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw many-, medium-, few-shot and overall accuracy of each run as grouped bars.

    Args:
        rows: one per run: ``name``, and ``many``, ``medium``, ``few``, ``accuracy`` in percent or None; for a mean
            over seeds also ``spread``, the standard deviations of these four.
        path: PNG file to write.
    """
    figure = Figure(figsize=(max(6.0, 1.7 + 1.5 * len(rows)), 4.0), layout="constrained")
    axes = figure.subplots()
    measures = (*GROUP_NAMES, "accuracy")
    x, width = np.arange(len(rows)), 0.205
    for index, measure in enumerate(measures):
        heights = np.array([row[measure] for row in rows], dtype=float)  # None -> nan
        left = x + (index - 1.5) * width
        label = "all" if measure == "accuracy" else measure
        axes.bar(left, heights, width * 0.9, color=GROUP_COLORS[measure], label=label, linewidth=0)
        spread = np.array([row.get("spread", {}).get(measure) or 0.0 for row in rows])
        axes.errorbar(left, heights, np.where(spread > 0, spread, np.nan), fmt="none", ecolor=INK, elinewidth=1)
        for position, height, top in zip(left, heights, heights + spread, strict=True):
            text = "-" if np.isnan(height) else f"{height:.0f}"
            axes.text(position, np.nan_to_num(top) + 1, text, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_xticks(x, [row["name"] for row in rows], fontsize=9, parse_math=False)
    axes.set_ylim(0, 108)
    axes.set_ylabel("test accuracy (%)")
    figure.legend(frameon=False, ncols=4, loc="outside upper center", handlelength=1, handleheight=1, labelcolor=INK)
    clean_axes(axes)
    save_png(figure, path)
