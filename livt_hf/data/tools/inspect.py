"""`livt dataset inspect`: class counts, shot groups and image sizes of a dataset, printed and as a figure.

The figure shows the class frequencies by shot group, the paper's logit biases (Theorem 1: B_ce = log pi; Theorem 2:
B_bce = log pi - log(1 - pi)) over pi, and example images of head, middle and tail classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...class_names import printable
from ...prior import GROUP_NAMES, ClassPrior, describe_groups, group_definition
from ...reporting.blocks import counted
from ...reporting.chart_style import (
    GROUP_COLORS,
    INK,
    MUTED,
    NARROW,
    clean_axes,
    columns,
    fitted,
    save_png,
    short_names,
    wrapped,
)
from ..decoding import decode_image
from ..long_tail import class_counts, dataset_labels
from ..table import Rows
from ..transforms import EvalTransform

SAMPLES = 4  # images per row of the figure
LINE = 13  # columns of text above an image
MEASURED = 500  # images whose size is measured
BCE_COLOR = "#8e44ad"
LABEL_COLORS = {**GROUP_COLORS, "medium": "#9a6a00"}  # readable on white


@dataclass
class InspectResult:
    """Result of `inspect_dataset`; ``str()`` gives the lines to print.

    Attributes:
        images: number of images per split.
        class_counts: training images per class.
        groups: number of classes per shot group.
        group_definitions: description of each shot group.
        sizes: height and width of up to 500 training images, (N, 2).
        unreadable: number of those images that cannot be read.
    """

    images: dict[str, int]
    class_counts: dict[str, int]
    imbalance_factor: float
    groups: dict[str, int]
    group_definitions: dict[str, str]
    sizes: np.ndarray
    unreadable: int

    def __str__(self) -> str:
        counts = ((printable(name), count) for name, count in self.class_counts.items())
        ranked = sorted(counts, key=lambda item: -item[1])
        shown = ranked if len(ranked) <= 20 else [*ranked[:8], None, *ranked[-8:]]
        width = max(columns(item[0]) for item in shown if item)
        largest, smallest = ranked[0][1], ranked[-1][1]
        lines = [
            ", ".join(f"{split} {count:,}" for split, count in self.images.items())
            + f" images, {len(ranked):,} classes",
            f"imbalance factor {self.imbalance_factor:g} ({largest:,} to {smallest:,} training images per class)",
            "classes by shot group: "
            + ", ".join(f"{name} {n:,} ({self.group_definitions[name]})" for name, n in self.groups.items()),
        ]
        if len(self.sizes):
            low, middle, high = np.percentile(self.sizes, (0, 50, 100), axis=0).astype(int)
            sides = [f"{side} {low[i]} to {high[i]} (median {middle[i]})" for i, side in enumerate(("height", "width"))]
            lines.append(f"sizes of {len(self.sizes):,} images: {', '.join(sides)}")
        if self.unreadable:
            lines.append(f"{self.unreadable} of the sampled images cannot be read; `livt dataset check` lists all")
        padded = [item and (item[0] + " " * (width - columns(item[0])), item[1]) for item in shown]
        lines += [f"  {item[0]}  {item[1]:>7,}" if item else "  ..." for item in padded]
        return "\n".join(lines)


def inspect_dataset(
    splits: DatasetDict, png: str | Path, groups: Mapping[str, Any] | None = None, source: str | None = None
) -> InspectResult:
    """Count classes, measure images and draw the figure.

    Args:
        png: file for the figure; its folder is created.
        groups: arguments of `ClassPrior.groups`; see `group_definition`.
        source: name of the dataset, stored in the figure for `check_picture`.
    """
    definition = group_definition(groups)
    counts = class_counts(splits)
    prior = ClassPrior(counts)
    labels_of = prior.groups(**definition)
    sizes, unreadable = _sizes(splits["train"])
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    _draw(splits["train"], prior, labels_of, Path(png), source)
    return InspectResult(
        images={split: len(rows) for split, rows in splits.items()},
        class_counts=counts,
        imbalance_factor=prior.imbalance_factor,
        groups={name: len(labels) for name, labels in labels_of.items()},
        group_definitions=describe_groups(definition),
        sizes=sizes,
        unreadable=unreadable,
    )


def check_picture(png: Path, source: str) -> None:
    """ValueError if the file is there already and not the figure of the dataset ``source``."""
    if not png.exists():
        return
    try:
        with PIL.Image.open(png) as picture:
            shown = picture.info.get("Source")
    except (OSError, ValueError):
        shown = None
    if shown != source:
        raise ValueError(
            f"output_dir: {str(png)!r} is there already and shows {shown or 'something else'}; name a folder for the "
            "picture with --output_dir"
        )


def _sizes(train: Dataset) -> tuple[np.ndarray, int]:
    """Height and width of up to `MEASURED` images spread over the split, and the number of unreadable ones."""
    rows, sizes, unreadable = Rows(train), [], 0
    for index in np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).astype(int):
        try:
            sizes.append(tuple(decode_image(rows.image(int(index))).shape[-2:]))
        except ValueError:
            unreadable += 1
    return np.array(sizes, dtype=np.int64).reshape(-1, 2), unreadable


def _draw(train: Dataset, prior: ClassPrior, labels_of: dict[str, np.ndarray], png: Path, source: str | None) -> None:
    figure = Figure(figsize=(NARROW, 8.8), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 0.95)))
    frequency, biases = top.subplots(2, 1)
    order = np.argsort(-prior.counts, kind="stable")  # (C,) labels, largest class first
    _draw_frequency(frequency, prior, order, labels_of)
    _draw_biases(biases, prior)
    for axes in (frequency, biases):
        clean_axes(axes)
        axes.tick_params(labelsize=9)
    _draw_samples(bottom, train, prior, order)
    save_png(figure, png, colors=None, source=source)


def _draw_frequency(axes: Axes, prior: ClassPrior, order: np.ndarray, labels_of: dict[str, np.ndarray]) -> None:
    start, names = 0, [name for name in GROUP_NAMES if len(labels_of[name])]
    for place, name in enumerate(names):
        end = start + len(labels_of[name])
        edges = np.arange(start, end + 1) + 0.5  # classes are numbered from 1
        axes.stairs(prior.counts[order][start:end], edges, fill=True, color=GROUP_COLORS[name])
        if start:
            axes.axvline(start + 0.5, ymax=0.8, color=INK, linewidth=0.8, linestyle=":")
        # From left to right, so that the names of narrow groups do not overlap
        x, side = ((0.02, "left"), (0.5, "center"), (0.98, "right"))[2 if place and place == len(names) - 1 else place]
        text = f"{name}-shot\n{counted(end - start, 'class')}"
        look: Any = {"fontsize": 9, "color": LABEL_COLORS[name], "fontweight": "bold"}
        axes.text(x, 0.98, text, ha=side, va="top", transform=axes.transAxes, **look)
        start = end
    axes.set(yscale="log", xlabel="classes, largest first", ylabel="training images (log scale)")
    axes.set_title("Training images of each class")
    axes.set(xlim=(0.5, len(prior) + 0.5), ylim=(0.8, 5 * prior.counts.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_biases(axes: Axes, prior: ClassPrior) -> None:
    curve = np.geomspace(prior.pi.min() / 2, 0.99, 200)
    axes.plot(curve, np.log(curve), color=MUTED)
    axes.plot(curve, np.log(curve) - np.log1p(-curve), color=BCE_COLOR)
    axes.scatter(prior.pi, prior.log_prior, s=10, color=MUTED)
    axes.scatter(prior.pi, prior.log_odds, s=10, color=BCE_COLOR, zorder=3)
    axes.axhline(0, color=MUTED, linewidth=0.6)
    label: Any = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
    axes.annotate("Bal-BCE: $\\log\\pi - \\log(1-\\pi)$", (0.93, 2.6), (-4, 6), color=BCE_COLOR, **label)
    axes.annotate("Bal-CE: $\\log\\pi$", (0.99, -0.01), (0, -42), color=MUTED, **label)
    axes.set(xscale="log", xlabel="class prior $\\pi$ (log scale)", ylabel="bias (logits)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # exponents would be too small
    axes.set_title("Logit bias of each class")


def _draw_samples(figure: SubFigure, train: Dataset, prior: ClassPrior, order: np.ndarray) -> None:
    """One row of images each of the largest, middle and smallest classes."""
    if len(order) < 3 * SAMPLES:
        parts = np.array_split(order, 3)
    else:
        start = (len(order) - SAMPLES) // 2
        parts = [order[:SAMPLES], order[start : start + SAMPLES], order[-SAMPLES:]]
    title = fitted("Examples, with the number of training images of their class", NARROW, margin=6)
    figure.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    shown = np.concatenate(parts)
    short = dict(zip(shown, short_names([prior.names[label] for label in shown], 3 * LINE - 8), strict=True))
    rows, labels = Rows(train), dataset_labels(train)
    crop = EvalTransform(96, crop_ratio=1.0)
    grid: np.ndarray = np.asarray(figure.subplots(3, SAMPLES))
    for axes_row, part, classes in zip(grid, ("largest", "middle", "smallest"), parts, strict=True):
        axes_row[0].set_ylabel(f"{part} classes", fontsize=9, color=MUTED)
        for column, axes in enumerate(axes_row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if not len(classes):
                continue
            label = classes[column % len(classes)]
            images = np.flatnonzero(labels == label)
            index = int(images[column // len(classes) % len(images)])
            try:
                axes.imshow(crop(decode_image(rows.image(index)))["pixel_values"].permute(1, 2, 0).numpy())
            except ValueError:
                axes.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axes.transAxes, fontsize=9)
            title = wrapped(f"{short[label]} ({prior.counts[label]:,})", LINE)
            axes.set_title(title, fontsize=9, color=INK, parse_math=False)
