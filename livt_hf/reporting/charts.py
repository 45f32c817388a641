"""Charts of one model: class frequency, accuracy along the tail, calibration, loss curve, reconstructions.

Their look is that of `chart_style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..class_names import printable
from ..prior import ClassPrior
from .blocks import counted
from .chart_style import (
    BAR,
    GROUP_COLORS,
    INK,
    MUTED,
    NARROW,
    OVERCONFIDENT,
    UNDERCONFIDENT,
    WIDE,
    add_tooltip,
    clean_axes,
    fitted,
    save_png,
    short_names,
    wrapped,
)

MAX_NAMED_CLASSES = 45  # that fit below an axis, 8.6 inches wide
MAX_SINGLE_BARS = 200  # classes with a bar each
MAX_BARS_PER_GROUP = 60  # with more classes, a bar is the mean of several adjacent ones


class Ranking:
    """Classes from the largest to the smallest, as the x axis of a chart.

    Attributes:
        prior: of the training images.
        order: labels, largest class first, (C,).
        ranks: the ranks of each shot group's classes, ascending; without empty groups.
        bars: for each group, the ranks that each bar covers.
        width: of the figure in inches.
    """

    def __init__(self, class_counts: Mapping[str, int] | Sequence[int], groups: Mapping[str, Any], width: float):
        self.width = width
        self.prior = ClassPrior(class_counts)
        self.order = np.argsort(-self.prior.counts, kind="stable")
        rank_of = np.argsort(self.order)  # (C,) label -> rank
        ranks = {group: np.sort(rank_of[labels]) for group, labels in self.prior.groups(**groups).items()}
        self.ranks = {group: members for group, members in ranks.items() if len(members)}
        single = len(self.prior) <= MAX_SINGLE_BARS
        self.bars = {
            group: np.array_split(members, len(members) if single else min(len(members), MAX_BARS_PER_GROUP))
            for group, members in self.ranks.items()
        }

    def by_rank(self, values: Mapping[str, float | None]) -> np.ndarray:
        """Values by class name -> (C,), largest class first, nan for None."""
        return np.array([values[self.prior.names[label]] for label in self.order], dtype=float)

    def bar_title(self, bar: np.ndarray) -> str:
        """The class of a bar, or the range of ranks that it covers."""
        if len(bar) == 1:
            return printable(self.prior.names[self.order[bar[0]]])
        return f"classes {bar[0] + 1:,} to {bar[-1] + 1:,} by size, means"


def class_frequency_figure(
    class_counts: Mapping[str, int] | Sequence[int],
    per_class_accuracy: Mapping[str, float | None],
    groups: Mapping[str, Any],
    width: float = WIDE,
) -> Figure:
    """Training images of each class, largest first, above the accuracy of the same classes.

    Args:
        class_counts: training images of each class.
        per_class_accuracy: percent by class name, None for a class without test images (drawn as a gap).
        groups: arguments of `ClassPrior.groups`.
        width: of the figure in inches; a narrow one names fewer classes.
    """
    ranking = Ranking(class_counts, groups, width)
    accuracy = ranking.by_rank(per_class_accuracy)  # (C,)
    counts = ranking.prior.counts[ranking.order].astype(float)  # (C,)
    tooltips = {}
    for bar in (bar for bars in ranking.bars.values() for bar in bars):
        known = accuracy[bar][~np.isnan(accuracy[bar])]
        measured = f"{known.mean():.1f} %" if len(known) else "no test images"
        tooltips[int(bar[0])] = (
            f"{ranking.bar_title(bar)}: {counts[bar].mean():,.4g} training images, accuracy {measured}"
        )
    figure = Figure(figsize=(width, 6.4 if are_named(len(counts), width) else 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _draw_frequency(top, ranking, counts, tooltips)
    _draw_accuracy(bottom, ranking, accuracy, tooltips)
    for members in ranking.ranks.values():
        end = members[-1] + 0.5
        if end < len(counts) - 0.5:
            for axes in (top, bottom):
                axes.axvline(
                    end, ymax=0.87 if width > NARROW else 0.68, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3))
                )
    _draw_classes(bottom, ranking)
    for axes in (top, bottom):
        clean_axes(axes)
    return figure


def _draw_frequency(axes: Axes, ranking: Ranking, counts: np.ndarray, tooltips: Mapping[int, str]) -> None:
    """Training images; ``counts`` (C,), largest first."""
    _draw_bars(axes, ranking, counts, tooltips)
    axes.set_yscale("log")
    axes.set_ylim(max(0.7, counts.min() * 0.6), counts.max() * 2.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if counts.max() < 1000 * counts.min() else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("training images (log scale)")
    _label_groups(axes, ranking, {group: f"{group}-shot: {len(members):,}" for group, members in ranking.ranks.items()})
    title = (
        f"Training images of each class: {len(counts):,} classes, {counts.sum():,.0f} images, "
        f"imbalance factor {ranking.prior.imbalance_factor:,.4g}"
    )
    axes.set_title(fitted(title, ranking.width))


def _draw_accuracy(axes: Axes, ranking: Ranking, accuracy: np.ndarray, tooltips: Mapping[int, str]) -> None:
    """Accuracy and group means; ``accuracy`` (C,) in percent or nan, largest class first."""
    _draw_bars(axes, ranking, accuracy, tooltips, alpha=0.85)
    labels = {}
    for group, members in ranking.ranks.items():
        if not np.isnan(accuracy[members]).all():
            mean = float(np.nanmean(accuracy[members]))
            axes.hlines(mean, members[0] - 0.5, members[-1] + 0.5, color=INK, linewidth=1.3)
            labels[group] = f"mean {mean:.1f} %"
    axes.set_ylim(0, 122)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")
    _label_groups(axes, ranking, labels)
    axes.set_title(fitted("Accuracy of the same classes, line: mean of the group", ranking.width))


def prediction_figure(
    class_counts: Mapping[str, int],
    test_counts: Mapping[str, int],
    predicted_counts: Mapping[str, int],
    groups: Mapping[str, Any],
    width: float = WIDE,
) -> Figure:
    """Class distribution of the predictions (bars), the test set and the training set (lines), largest class first.

    Args:
        class_counts, test_counts, predicted_counts: images by class name.
        groups: arguments of `ClassPrior.groups`.
        width: of the figure in inches; a narrow one names fewer classes.
    """
    ranking = Ranking(class_counts, groups, width)
    train, test, predicted = (
        100 * ranking.by_rank(counts) / sum(counts.values()) for counts in (class_counts, test_counts, predicted_counts)
    )
    bars = [bar for group in ranking.bars.values() for bar in group]
    tooltips = {
        int(bar[0]): f"{ranking.bar_title(bar)}: {predicted[bar].mean():.3g} % of the predictions, "
        f"{test[bar].mean():.3g} % of the test images, {train[bar].mean():.3g} % of the training images"
        for bar in bars
    }
    figure = Figure(figsize=(width, 4.4 if are_named(len(train), width) else 3.6), layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, ranking, predicted, tooltips)
    centers = [bar.mean() for bar in bars]
    lines = {"training set": (train, INK, "-"), "test set": (test, MUTED, (0, (4, 3)))}
    for name, (values, color, style) in lines.items():
        look: dict[str, Any] = {"marker": "o", "markersize": 2.5} if style == "-" else {}
        axes.plot(
            centers,
            [values[bar].mean() for bar in bars],
            color=color,
            linewidth=1.5,
            linestyle=style,
            label=name,
            **look,
        )
    axes.bar(0, 0, color=GROUP_COLORS["many"], label="predictions")
    axes.set_ylim(0, 1.15 * max(axes.get_ylim()[1], 1e-9))
    axes.set_ylabel("images of the class (%)")
    axes.set_title("How often each class is predicted")
    _label_groups(axes, ranking, {group: f"{group}-shot" for group in ranking.ranks})
    look = {"handlelength": 1.6, "handleheight": 1, "columnspacing": 1.2, "labelcolor": INK, "fontsize": 9}
    figure.legend(frameon=False, ncols=3, loc="outside lower center", **look)
    _draw_classes(axes, ranking)
    clean_axes(axes)
    return figure


def _draw_bars(
    axes: Axes, ranking: Ranking, values: np.ndarray, tooltips: Mapping[int, str], alpha: float = 1.0
) -> None:
    """Draw ``values`` (C,), largest class first, as bars, each the mean over its classes, ignoring nan."""
    for group, bars in ranking.bars.items():
        for bar in bars:
            known = values[bar][~np.isnan(values[bar])]
            width = 0.82 * len(bar) if len(values) <= MAX_SINGLE_BARS else len(bar)
            height = known.mean() if len(known) else 0
            look: dict[str, Any] = {"color": GROUP_COLORS[group], "linewidth": 0, "alpha": alpha}
            (patch,) = axes.bar(bar.mean(), height, width, **look)
            add_tooltip(patch, tooltips[int(bar[0])])


def _label_groups(axes: Axes, ranking: Ranking, labels: Mapping[str, str]) -> None:
    """A line of text above each group's bars, or, where a group is too narrow for it, all in the upper right corner."""
    classes, characters = len(ranking.prior), 11 * ranking.width  # that fit across the axis
    if all(len(text) <= characters * len(ranking.ranks[group]) / classes for group, text in labels.items()):
        for group, text in labels.items():
            members = ranking.ranks[group]
            x = (members[0] + members[-1]) / 2
            axes.text(x, 0.99, text, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=9, color=INK)
        return
    handles = [
        Patch(color=GROUP_COLORS[group], label=text if text.startswith(group) else f"{group}-shot: {text}")
        for group, text in labels.items()
    ]
    columns = 3 if ranking.width > NARROW else 1
    if columns == 1:  # room above the bars
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.3 if axes.get_yscale() == "log" else 1.25 * high)
    axes.legend(
        handles=handles, frameon=False, ncols=columns, loc="upper right", handlelength=1, labelcolor=INK, fontsize=9
    )


def are_named(classes: int, width: float) -> bool:
    """Whether the names of so many classes fit below an axis of a figure that is ``width`` inches wide."""
    return classes <= MAX_NAMED_CLASSES * (width - 0.7) / (WIDE - 0.7)


def _draw_classes(axes: Axes, ranking: Ranking) -> None:
    """The x axis: names of the classes, where they fit, or their ranks."""
    classes = len(ranking.prior)
    axes.set_xlim(-0.6, classes - 0.4)
    if are_named(classes, ranking.width):
        names = short_names([ranking.prior.names[label] for label in ranking.order])
        upright = classes * (max(map(len, names)) + 1) <= 12.5 * ranking.width
        axes.set_xticks(range(classes), names, rotation=0 if upright else 90, fontsize=9, parse_math=False)
        axes.set_xlabel("class, largest first")
        return
    widest = max(len(bar) for bars in ranking.bars.values() for bar in bars)
    grouped = f"; each bar: mean of up to {widest:,} adjacent classes" if widest > 1 else ""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank + 1:,.0f}" if rank >= 0 else ""))
    axes.set_xlabel(wrapped(f"rank of the class by training images{grouped}", int(13 * ranking.width)))


def plot_thumbnails(images: Sequence[np.ndarray], titles: Sequence[str], path: str | Path, columns: int = 3) -> None:
    """Draw rows of images, each with a title of two parts, on lines of their own.

    Args:
        images: uint8 (H, W, 3) of any size.
        titles: names separated by a line break; a long name takes two or three lines.
        path: PNG file to write.
    """
    parts = ["\n".join(wrapped(name, 17) for name in short_names(title.split("\n"), 40)) for title in titles]
    lines = [1 + part.count("\n") for part in parts]
    cell, gap = NARROW / columns, 0.06  # inches
    heights = [cell + gap + 0.165 * max(lines[start : start + columns]) for start in range(0, len(images), columns)]
    figure = Figure(figsize=(NARROW, sum(heights)))
    for place, (image, part) in enumerate(zip(images, parts, strict=True)):
        row, column = divmod(place, columns)
        x, y, side = column * cell + gap / 2, sum(heights[row + 1 :]) + gap / 2, cell - gap
        axes = figure.add_axes((x / NARROW, y / sum(heights), side / NARROW, side / sum(heights)), anchor="N")
        axes.axis("off")
        axes.imshow(image, interpolation="nearest")
        axes.set_title(part, fontsize=9, color=INK, parse_math=False, pad=3)
    save_png(figure, path, colors=None)


def reliability_figure(bins: Sequence[Mapping[str, Any]], ece: float) -> Figure:
    """Reliability diagram: accuracy and calibration gap per confidence bin, above the histogram of confidences.

    The top of a solid bar is the accuracy of the bin. The gap to the mean confidence is hatched: above the bar where
    the model is overconfident, over the bar where it is underconfident.

    Args:
        bins: from `livt_hf.metrics.reliability_bins`.
        ece: expected calibration error in percent, for the title.
    """
    figure = Figure(figsize=(4.0, 5.0), layout="constrained")
    main, share = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    total = sum(bin_["count"] for bin_ in bins)
    for bin_ in (bin_ for bin_ in bins if bin_["count"]):
        place: dict[str, Any] = {"width": 0.92 * (bin_["high"] - bin_["low"]), "align": "edge"}
        accuracy, confidence = bin_["accuracy"], bin_["confidence"]
        bars = [
            *share.bar(bin_["low"], 100 * bin_["count"] / total, color=BAR, linewidth=0, **place),
            *main.bar(bin_["low"], accuracy, color=GROUP_COLORS["many"], linewidth=0, **place),
            *main.bar(
                bin_["low"],
                abs(confidence - accuracy),
                bottom=min(accuracy, confidence),
                **place,
                **(OVERCONFIDENT if confidence > accuracy else UNDERCONFIDENT),
            ),
        ]
        main.hlines(accuracy, bin_["low"], bin_["low"] + place["width"], color=INK, linewidth=1.8)
        for bar in bars:
            add_tooltip(
                bar,
                f"confidence {bin_['low']:.0f} to {bin_['high']:.0f} %, mean {confidence:.1f} %: accuracy "
                f"{accuracy:.1f} %, {counted(bin_['count'], 'image')}",
            )
    main.plot((0, 100), (0, 100), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    main.bar(0, 0, color=GROUP_COLORS["many"], label="accuracy (line: its height)")
    main.bar(0, 0, label="overconfident by", **OVERCONFIDENT)
    main.bar(0, 0, label="underconfident by", **UNDERCONFIDENT)
    main.set_title(f"Reliability diagram, ECE {ece:.1f} %")
    main.set_ylabel("accuracy (%)")
    main.set(xlim=(0, 100), ylim=(0, 101))
    share.set_ylabel("images (%)")
    share.set_xlabel(f"confidence (%) of {counted(total, 'image')}")
    figure.legend(
        frameon=False, loc="outside lower center", ncols=1, handlelength=1.4, handleheight=1, labelcolor=INK, fontsize=9
    )
    for axes in (main, share):
        clean_axes(axes)
    return figure


def plot_reconstructions(
    originals: np.ndarray,
    masked: np.ndarray,
    reconstructed: np.ndarray,
    path: str | Path,
    titles: Sequence[str] | None = None,
) -> None:
    """Draw images in rows of four: original, masked, reconstructed.

    Args:
        originals, masked, reconstructed: uint8 arrays of shape (B, H, W, 3).
        path: PNG file to write.
        titles: one per column.
    """
    columns = min(len(originals), 4)
    blocks = -(-len(originals) // columns)
    names = [wrapped(name, 13) for name in short_names(titles or [], 36)]
    lines = max((name.count("\n") + 1 for name in names), default=0)
    side = (NARROW - 0.25) / columns  # inches
    figure = Figure(
        figsize=(NARROW, blocks * (3 * side + 0.17 * lines + 0.1)),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01),
    )
    parts = figure.subfigures(blocks, 1, squeeze=False, hspace=0.03)[:, 0]
    grids = [part.subplots(3, columns, squeeze=False) for part in parts]
    for axes in (axes for grid in grids for axes in grid.flat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    kinds = {"original": originals, "masked": masked, "reconstructed": reconstructed}
    for row, (kind, images) in enumerate(kinds.items()):
        for place, image in enumerate(images):
            block, column = divmod(place, columns)
            axes = grids[block][row, column]
            axes.imshow(image, interpolation="nearest")
            if row == 0 and names:
                axes.set_title(names[place], fontsize=9, color=INK, parse_math=False)
            if column == 0:
                axes.set_ylabel(kind, fontsize=9, color=INK)
    save_png(figure, path, colors=None)


def plot_loss_curve(lines: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Write `loss_curve_figure` as a PNG file."""
    save_png(loss_curve_figure(lines, NARROW), path)


def loss_curve_figure(lines: Sequence[Mapping[str, float]], width: float = WIDE) -> Figure:
    """Loss by epoch, and k-NN accuracy by epoch below it if there are probes.

    Args:
        lines: entries of metrics.jsonl: ``epoch`` with ``loss`` or with ``probe_accuracy`` in percent.
        width: of the figure in inches.
    """
    losses = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    probes = [(line["epoch"], line["probe_accuracy"]) for line in lines if "probe_accuracy" in line]
    height = 3.4 if width > NARROW else 2.6
    figure = Figure(figsize=(width, height * (1.6 if probes else 1)), layout="constrained")
    curves = [(losses, "Training loss by epoch", "training loss", GROUP_COLORS["many"])]
    if probes:
        curves.append((probes, "k-NN accuracy by epoch", "k-NN accuracy (%)", GROUP_COLORS["few"]))
    rows = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (points, title, name, color) in zip(rows, curves, strict=True):
        if points:
            marker = "o" if len(points) < 30 else None  # a line needs two points
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, marker=marker, markersize=4)
        axes.set_title(title)
        axes.set_ylabel(name)
        clean_axes(axes)
    rows[-1].set_xlabel("epoch")
    return figure
