"""Charts of one model: class frequency, accuracy along the tail, calibration, loss curve, reconstructions.

They use matplotlib's object API, without global state. PNGs have a white background; SVGs from `as_svg` follow the
page's light or dark colors. Shot groups have the same color in every chart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files import write_bytes
from ..prior import ClassPrior

GROUP_COLORS = {"many": "#2f6fde", "medium": "#e0a11b", "few": "#d6455d", "accuracy": "#5b6472"}
INK, MUTED, GRID = "#1f2933", "#6b7683", "#e6e9ee"
OVERCONFIDENT = {"facecolor": "#f8dde1", "edgecolor": "#d6455d"}
UNDERCONFIDENT = {"facecolor": "#f8e6bd", "edgecolor": "#e0a11b"}
DPI = 144
MAX_NAMED_CLASSES = 45  # that fit below an axis
MAX_BARS_PER_GROUP = 60  # in larger groups, a bar is the mean of several adjacent classes


def class_frequency_figure(
    class_counts: Mapping[str, int] | Sequence[int],
    per_class_accuracy: Mapping[str, float | None],
    groups: Mapping[str, Any],
) -> Figure:
    """Training images of each class, largest first, above the accuracy of the same classes.

    Args:
        class_counts: training images of each class.
        per_class_accuracy: percent by class name, None for a class without test images (drawn as a gap).
        groups: arguments of `ClassPrior.groups`.
    """
    prior = ClassPrior(class_counts)
    order = np.argsort(-prior.counts, kind="stable")  # (C,) labels, largest class first
    accuracy = np.array([per_class_accuracy[prior.names[label]] for label in order], dtype=float)  # None -> nan
    ranks = _ranks(prior, order, groups)
    named = len(prior) <= MAX_NAMED_CLASSES
    figure = Figure(figsize=(8.6, 6.2 if named else 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _draw_frequency(top, prior, prior.counts[order], ranks)
    _draw_accuracy(bottom, accuracy, ranks)
    for members in ranks.values():
        end = members[-1] + 0.5
        if end < len(prior) - 0.5:
            for axes in (top, bottom):
                axes.axvline(end, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    bottom.set_xlim(-0.6, len(prior) - 0.4)
    if named:
        _name_classes(bottom, prior, order)
    else:
        widest = max(len(bar) for members in ranks.values() for bar in _bars(members))
        grouped = f" (each bar: mean of up to {widest} adjacent classes)" if widest > 1 else ""
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        bottom.set_xlabel(f"classes, largest first{grouped}")
    for axes in (top, bottom):
        clean_axes(axes)
    return figure


def _draw_frequency(axes: Axes, prior: ClassPrior, counts: np.ndarray, ranks: Mapping[str, np.ndarray]) -> None:
    """Training images; ``counts`` (C,), largest first."""
    for group, members in ranks.items():
        _draw_bars(axes, members, counts, GROUP_COLORS[group])
        axes.bar(0, 0, color=GROUP_COLORS[group], label=f"{group} ({len(members):,})")
    axes.set_yscale("log")
    axes.set_ylim(max(0.7, counts.min() * 0.6), counts.max() * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if counts.max() < 1000 * counts.min() else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("training images (log scale)")
    axes.set_title(
        f"{len(prior):,} classes, {counts.sum():,} training images, imbalance factor {prior.imbalance_factor:,.4g}"
    )
    axes.legend(frameon=False, ncols=3, loc="upper right", handlelength=1, handleheight=1, labelcolor=INK)


def _draw_accuracy(axes: Axes, accuracy: np.ndarray, ranks: Mapping[str, np.ndarray]) -> None:
    """Accuracy and group means; ``accuracy`` (C,) in percent or nan, largest class first."""
    for group, members in ranks.items():
        _draw_bars(axes, members, accuracy, GROUP_COLORS[group], alpha=0.85)
        if not np.isnan(accuracy[members]).all():
            mean, start, end = float(np.nanmean(accuracy[members])), members[0] - 0.5, members[-1] + 0.5
            axes.hlines(mean, start, end, color=INK, linewidth=1.3)
            axes.text((start + end) / 2, 106, f"mean {mean:.1f}", ha="center", va="bottom", fontsize=9, color=INK)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")


def prediction_figure(
    class_counts: Mapping[str, int],
    test_counts: Mapping[str, int],
    predicted_counts: Mapping[str, int],
    groups: Mapping[str, Any],
) -> Figure:
    """Class distribution of the predictions (bars), the test set and the training set (lines), largest class first.

    Args:
        class_counts, test_counts, predicted_counts: images by class name.
        groups: arguments of `ClassPrior.groups`.
    """
    prior = ClassPrior(class_counts)
    order = np.argsort(-prior.counts, kind="stable")  # (C,) labels, largest class first
    train = 100 * prior.pi[order]
    test, predicted = (
        100 * np.array([counts[prior.names[label]] for label in order]) / sum(counts.values())
        for counts in (test_counts, predicted_counts)
    )
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    centers, lines = [], []
    for group, members in _ranks(prior, order, groups).items():
        _draw_bars(axes, members, predicted, GROUP_COLORS[group])
        axes.bar(0, 0, color=GROUP_COLORS[group], label=f"predicted, {group}")
        for bar in _bars(members):
            centers.append(bar.mean())
            lines.append((train[bar].mean(), test[bar].mean()))
    lines_of = np.array(lines)
    axes.plot(centers, lines_of[:, 0], color=INK, linewidth=1.5, marker="o", markersize=2.5, label="training set")
    axes.plot(centers, lines_of[:, 1], color=MUTED, linewidth=1.5, linestyle=(0, (4, 3)), label="test set")
    axes.set_xlim(-0.6, len(prior) - 0.4)
    axes.set_ylabel("images (%)")
    axes.set_xlabel("classes, largest first")
    axes.set_title("Predicted class distribution")
    figure.legend(frameon=False, ncols=5, loc="outside lower center", handlelength=1.6, handleheight=1, labelcolor=INK)
    if len(prior) <= MAX_NAMED_CLASSES:
        _name_classes(axes, prior, order)
    clean_axes(axes)
    return figure


def _ranks(prior: ClassPrior, order: np.ndarray, groups: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ranks in ``order`` of each group's classes, ascending; without empty groups."""
    rank_of = np.argsort(order)  # (C,) label -> rank
    ranks = {group: np.sort(rank_of[labels]) for group, labels in prior.groups(**groups).items()}
    return {group: members for group, members in ranks.items() if len(members)}


def _bars(members: np.ndarray) -> list[np.ndarray]:
    """The ranks that each bar covers."""
    return np.array_split(members, min(len(members), MAX_BARS_PER_GROUP))


def _draw_bars(axes: Axes, members: np.ndarray, values: np.ndarray, color: str, **look: Any) -> None:
    """Draw ``values`` (C,) as bars, each the mean over adjacent classes, ignoring nan."""
    for bar in _bars(members):
        known = values[bar][~np.isnan(values[bar])]
        width = 0.82 * len(bar) if len(values) <= 100 else len(bar)
        axes.bar(bar.mean(), known.mean() if len(known) else 0, width, color=color, linewidth=0, **look)


def _name_classes(axes: Axes, prior: ClassPrior, order: np.ndarray) -> None:
    names = [_short(prior.names[label]) for label in order]
    upright = len(prior) <= 12 and max(map(len, names)) <= 8
    axes.set_xticks(range(len(prior)), names, rotation=0 if upright else 90, fontsize=8, parse_math=False)


def plot_thumbnails(images: Sequence[np.ndarray], titles: Sequence[str], path: str | Path, columns: int = 8) -> None:
    """Draw rows of images, each with a title of up to two lines.

    Args:
        images: uint8 (H, W, 3) of any size.
        path: PNG file to write.
    """
    rows = -(-len(images) // columns)
    figure = Figure(
        figsize=(0.2 + 1.3 * columns, 1.75 * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01),
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        short = "\n".join(_short(line, 18) for line in title.split("\n"))
        axes.set_title(short, fontsize=7, color=INK, parse_math=False)
    save_png(figure, path, colors=None)


def reliability_figure(bins: Sequence[Mapping[str, Any]], ece: float) -> Figure:
    """Reliability diagram: accuracy and calibration gap per confidence bin, above the histogram of confidences.

    Args:
        bins: from `livt_hf.metrics.reliability_bins`.
        ece: expected calibration error in percent, for the title.
    """
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    main, share = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    total = sum(bin_["count"] for bin_ in bins)
    for bin_ in bins:
        width = bin_["high"] - bin_["low"]
        share.bar(bin_["low"], 100 * bin_["count"] / total, width * 0.92, align="edge", color="#aab4c2", linewidth=0)
        if not bin_["count"]:
            continue
        bar = {"width": width * 0.92, "align": "edge"}
        main.bar(bin_["low"], bin_["accuracy"], color=GROUP_COLORS["many"], linewidth=0, **bar)
        gap = bin_["confidence"] - bin_["accuracy"]
        kind = OVERCONFIDENT if gap > 0 else UNDERCONFIDENT
        main.bar(bin_["low"], gap, bottom=bin_["accuracy"], linewidth=0.9, **bar, **kind)
    main.plot((0, 100), (0, 100), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    main.bar(0, 0, color=GROUP_COLORS["many"], label="accuracy")
    main.bar(0, 0, label="overconfident", **OVERCONFIDENT)
    main.bar(0, 0, label="underconfident", **UNDERCONFIDENT)
    main.legend(frameon=False, loc="upper left", handlelength=1, handleheight=1, labelcolor=INK)
    main.set_title(f"Reliability diagram, n = {total:,}, ECE {ece:.1f} %")
    main.set_ylabel("accuracy (%)")
    main.set(xlim=(0, 100), ylim=(0, 100))
    share.set_ylabel("images (%)")
    share.set_xlabel("confidence (%)")
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
    """Draw three rows of images: original, masked, reconstructed.

    Args:
        originals, masked, reconstructed: uint8 arrays of shape (B, H, W, 3).
        path: PNG file to write.
        titles: one per column.
    """
    columns = len(originals)
    figure = Figure(
        figsize=(0.4 + 1.25 * columns, 3.95 + 0.25 * bool(titles)),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01),
    )
    grid = figure.subplots(3, columns, squeeze=False)
    for row, (name, images) in enumerate(
        (("original", originals), ("masked", masked), ("reconstructed", reconstructed))
    ):
        for column, image in enumerate(images):
            axes = grid[row, column]
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0 and titles:
                axes.set_title(_short(titles[column], 16), fontsize=8, color=INK, parse_math=False)
        grid[row, 0].set_ylabel(name, fontsize=9, color=INK)
    save_png(figure, path, colors=None)


def plot_loss_curve(lines: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Write `loss_curve_figure` as a PNG file."""
    save_png(loss_curve_figure(lines), path)


def loss_curve_figure(lines: Sequence[Mapping[str, float]]) -> Figure:
    """Loss by epoch, and k-NN accuracy by epoch below it if there are probes.

    Args:
        lines: entries of metrics.jsonl: ``epoch`` with ``loss`` or with ``probe_accuracy`` in percent.
    """
    losses = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    probes = [(line["epoch"], line["probe_accuracy"]) for line in lines if "probe_accuracy" in line]
    figure = Figure(figsize=(7.2, 5.4 if probes else 3.4), layout="constrained")
    curves = [(losses, "training loss", GROUP_COLORS["many"])]
    if probes:
        curves.append((probes, "k-NN accuracy (%)", GROUP_COLORS["few"]))
    rows = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (points, name, color) in zip(rows, curves, strict=True):
        if points:
            marker = "o" if len(points) < 30 else None  # a line needs two points
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, marker=marker, markersize=4)
        axes.set_ylabel(name)
        clean_axes(axes)
    rows[-1].set_xlabel("epoch")
    return figure


def clean_axes(axes: Axes) -> None:
    """Apply the common style: no frame, a light grid behind the bars, muted ticks."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=MUTED, labelcolor=INK)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.title.set(color=INK, fontsize=11, fontweight="bold")


def save_png(figure: Figure, path: str | Path, colors: int | None = 128, source: str | None = None) -> None:
    """Write the figure as a PNG, with a palette (a third of the size) unless ``colors`` is None, as for photos.

    Args:
        source: what the figure shows; stored in the file.
    """
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if colors:
        image = image.quantize(colors, dither=Image.Dither.NONE)
    data = io.BytesIO()
    text = PngInfo()
    if source is not None:
        text.add_itxt("Source", source)
    image.save(data, "PNG", optimize=True, pnginfo=text)
    write_bytes(Path(path), data.getvalue())


# Chart colors -> CSS variables of the page.
_PAGE_COLORS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    "#aab4c2": "var(--bar)",
    OVERCONFIDENT["facecolor"]: "var(--over)",
    UNDERCONFIDENT["facecolor"]: "var(--under)",
}


def as_svg(figure: Figure) -> str:
    """The figure as an inline `<svg>`: transparent, with selectable text and the page's colors."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "livt_hf", "font.family": ["DejaVu Sans", "sans-serif"]}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for color, variable in _PAGE_COLORS.items():
        text = text.replace(color, variable)
    return text[text.index("<svg") :]


def _short(name: str, length: int = 24) -> str:
    name = " ".join(str(name).split())
    return name if len(name) <= length else name[: length - 1] + "…"
