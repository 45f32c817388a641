"""`livt dataset inspect`: the numbers of a dataset, and a picture of them.

The picture shows the classes sorted by size with the borders of the shot groups, the biases that the paper adds to the
logits (Theorem 1: B_ce = log pi; Theorem 2: B_bce = log pi - log(1 - pi)) against pi, and images from head, middle and
tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ...prior import GROUP_NAMES, ClassPrior
from ...reporting.charts import GROUP_COLORS, save_png
from ..decoding import decode_image
from ..long_tail import class_counts, dataset_labels
from ..table import Rows
from ..transforms import EvalTransform

SAMPLES = 8  # images in a row of the picture
MEASURED = 500  # images whose size is looked at


@dataclass
class Inspected:
    """What `inspect_dataset` found; ``str()`` gives the lines to print.

    Attributes:
        images: number of images of each split.
        class_counts: training images of each class.
        groups: number of classes in each shot group.
        sizes: (number looked at, 2), height and width of training images.
    """

    images: dict[str, int]
    class_counts: dict[str, int]
    imbalance_factor: float
    groups: dict[str, int]
    group_rule: str
    sizes: np.ndarray
    unreadable: int

    def __str__(self) -> str:
        ranked = sorted(self.class_counts.items(), key=lambda item: -item[1])
        shown = ranked if len(ranked) <= 20 else [*ranked[:8], None, *ranked[-8:]]
        width = max(len(item[0]) for item in shown if item)
        largest, smallest = ranked[0][1], ranked[-1][1]
        lines = [
            ", ".join(f"{split} {count:,}" for split, count in self.images.items())
            + f" images, {len(ranked):,} classes",
            f"imbalance factor {self.imbalance_factor:g} ({largest:,} to {smallest:,} training images a class)",
            f"classes by shots ({self.group_rule}): " + ", ".join(f"{name} {n:,}" for name, n in self.groups.items()),
        ]
        if len(self.sizes):
            low, middle, high = np.percentile(self.sizes, (0, 50, 100), axis=0).astype(int)
            sides = [f"{side} {low[i]} to {high[i]} (median {middle[i]})" for i, side in enumerate(("height", "width"))]
            lines.append(f"sizes of {len(self.sizes):,} images: {', '.join(sides)}")
        if self.unreadable:
            lines.append(f"{self.unreadable} of the images looked at cannot be read: `livt dataset check` lists all")
        lines += [f"  {item[0]:<{width}}  {item[1]:>7,}" if item else "  ..." for item in shown]
        return "\n".join(lines)


def inspect_dataset(splits: DatasetDict, png: str | Path, groups: Mapping[str, Any] | None = None) -> Inspected:
    """Count, measure and draw.

    Args:
        png: file to write the picture to; its folder is made.
        groups: arguments of `ClassPrior.groups` (many=100, few=20, by="count").
    """
    rule = {"many": 100, "few": 20, "by": "count", **(groups or {})}
    counts = class_counts(splits)
    prior = ClassPrior(counts)
    labels_of = prior.groups(**rule)
    sizes, unreadable = _sizes(splits["train"])
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    _draw(splits["train"], prior, labels_of, Path(png))
    return Inspected(
        images={split: len(rows) for split, rows in splits.items()},
        class_counts=counts,
        imbalance_factor=prior.imbalance_factor,
        groups={name: len(labels) for name, labels in labels_of.items()},
        group_rule=_rule_in_words(**rule),
        sizes=sizes,
        unreadable=unreadable,
    )


def _rule_in_words(many: int, few: int, by: str) -> str:
    if by == "count":
        return f"many: more than {many} images, few: fewer than {few}"
    return f"many: the {many} largest, few: the {few} smallest"


def _sizes(train: Dataset) -> tuple[np.ndarray, int]:
    """Height and width of up to `MEASURED` images spread over the split, and how many cannot be read."""
    rows, sizes, unreadable = Rows(train), [], 0
    for index in np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).astype(int):
        try:
            sizes.append(tuple(decode_image(rows.image(int(index))).shape[-2:]))
        except ValueError:
            unreadable += 1
    return np.array(sizes, dtype=np.int64).reshape(-1, 2), unreadable


def _draw(train: Dataset, prior: ClassPrior, labels_of: dict[str, np.ndarray], png: Path) -> None:
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.05)))
    frequency, biases = top.subplots(1, 2)
    order = np.argsort(-prior.counts, kind="stable")  # (C,) labels, largest class first
    _draw_frequency(frequency, prior, order, labels_of)
    _draw_biases(biases, prior)
    _draw_samples(bottom, train, prior, order)
    save_png(figure, png, colors=None)


def _draw_frequency(axes: Axes, prior: ClassPrior, order: np.ndarray, labels_of: dict[str, np.ndarray]) -> None:
    start = 0
    for name in GROUP_NAMES:
        end = start + len(labels_of[name])
        if end > start:
            edges = np.arange(start, end + 1) + 0.5  # classes are numbered from 1
            label = f"{name}: {end - start:,} classes"
            axes.stairs(prior.counts[order][start:end], edges, fill=True, color=GROUP_COLORS[name], label=label)
            if start:
                axes.axvline(start + 0.5, color="black", linewidth=0.8, linestyle=":")
        start = end
    axes.set(yscale="log", xlabel="class, largest first", ylabel="training images", title="class frequency")
    axes.set(xlim=(0.5, len(prior) + 0.5), ylim=(0.8, 2 * prior.counts.max()))
    axes.legend(loc="upper right")


def _draw_biases(axes: Axes, prior: ClassPrior) -> None:
    curve = np.geomspace(prior.pi.min() / 2, 0.99, 200)
    axes.plot(curve, np.log(curve), color="#5b6472", label=r"$B_{ce} = \log\pi$ (Theorem 1)")
    axes.plot(
        curve, np.log(curve) - np.log1p(-curve), color="#8e44ad", label=r"$B_{bce} = \log\pi - \log(1-\pi)$ (Theorem 2)"
    )
    axes.scatter(prior.pi, prior.log_prior, s=10, color="#5b6472")
    axes.scatter(prior.pi, prior.log_odds, s=10, color="#8e44ad", zorder=3)
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.set(xscale="log", xlabel=r"$\pi$, share of the training images", ylabel="bias", title="biases of the logits")
    axes.legend(frameon=False)


def _draw_samples(figure: SubFigure, train: Dataset, prior: ClassPrior, order: np.ndarray) -> None:
    """A row of images each from the largest, the middle and the smallest classes."""
    if len(order) < 3 * SAMPLES:
        head, middle, tail = np.array_split(order, 3)
    else:
        start = (len(order) - SAMPLES) // 2
        head, middle, tail = order[:SAMPLES], order[start : start + SAMPLES], order[-SAMPLES:]
    rows, labels = Rows(train), dataset_labels(train)
    crop = EvalTransform(96, crop_ratio=1.0)
    grid: np.ndarray = np.asarray(figure.subplots(3, SAMPLES))
    for axes_row, part, classes in zip(grid, ("head", "middle", "tail"), (head, middle, tail), strict=True):
        axes_row[0].set_ylabel(part)
        for column, axes in enumerate(axes_row):
            axes.set(xticks=[], yticks=[])
            if not len(classes):
                continue
            label = classes[column % len(classes)]
            images = np.flatnonzero(labels == label)
            index = int(images[column // len(classes) % len(images)])
            try:
                axes.imshow(crop(decode_image(rows.image(index)))["pixel_values"].permute(1, 2, 0).numpy())
            except ValueError:
                axes.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axes.transAxes, fontsize=7)
            name = prior.names[label] if len(prior.names[label]) <= 18 else prior.names[label][:16] + "..."
            axes.set_title(f"{name} ({prior.counts[label]:,})".replace("$", r"\$"), fontsize=7)
