"""How certain results are, for reports and cards: intervals, test-time ensembling, accuracy over coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from .blocks import Table, percent
from .chart_style import GROUP_COLORS, INK, clean_axes

SELECTIVE = "selective.png"
SELECTIVE_CAPTION = "Accuracy of the images answered, by coverage"
STATED_COVERAGES = (90, 70, 50)  # percent, in words


def interval_of(results: Mapping[str, Any], measure: str) -> list[float] | None:
    """The confidence interval of a figure; None if it has none, as in results of earlier versions."""
    return (results.get("intervals") or {}).get(measure)


def interval_sentence(results: Mapping[str, Any]) -> str:
    """What the intervals are; empty without them."""
    if not results.get("intervals"):
        return ""
    method = results["intervals"]["method"]
    exact = " (Clopper-Pearson where each class is all right or all wrong)" if method["exact"] else ""
    return (
        f"In parentheses: {method['level']:g} % confidence intervals over test images, from {method['resamples']:,} "
        f"bootstrap resamples within classes, seed {method['seed']}{exact}. They do not cover what another training "
        "run would change."
    )


def tta_sentence(tta: str | None) -> str:
    """What test-time ensembling was used; empty without."""
    views = {"flip": "each image and its mirror image", "fivecrop": "five crops of each image"}
    return f"Test-time ensembling ({tta}): mean of the probabilities over {views[tta]}." if tta else ""


def selective_sentence(results: Mapping[str, Any]) -> str:
    """Accuracy if only the most confident images are answered, in words."""
    selective = results["selective"]
    accuracy = dict(zip(selective["curve"]["coverage"], selective["curve"]["accuracy"], strict=True))
    points = ", ".join(f"the most confident {share} %: {percent(accuracy[share])} %" for share in STATED_COVERAGES)
    return (
        f"All images answered: {percent(accuracy[100])} % right; {points}. Mean over all coverages: "
        f"{percent(selective['area'])} %. Images below the score of livt predict --min_score are not answered. "
        "Few-shot: over the images of few-shot classes, each class counting equally."
    )


def selective_table(results: Mapping[str, Any]) -> Table:
    """Coverage and accuracy at several scores."""
    header = ("Score at least", "Answered (%)", "Accuracy (%)", "Few-shot answered (%)", "Few-shot accuracy (%)")
    keys = ("coverage", "accuracy", "few_coverage", "few_accuracy")
    rows = [
        (f"{row['min_score']:g}", *(percent(row[key]) for key in keys)) for row in results["selective"]["thresholds"]
    ]
    return Table(header, rows, "rrrrr")


def selective_figure(selective: Mapping[str, Any]) -> Figure:
    """Accuracy of the most confident images by their share, of all images and of those of few-shot classes.

    Args:
        selective: from `livt_hf.metrics.selective_accuracy`.
    """
    curve = selective["curve"]
    figure = Figure(figsize=(4.0, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = {"all images": ("accuracy", INK), "few-shot": ("few", GROUP_COLORS["few"])}
    lowest, ends = 100.0, {}
    for name, (key, color) in lines.items():
        if curve[key] is not None:
            axes.plot(curve["coverage"], curve[key], color=color, linewidth=1.8)
            ends[f"{name}\n{curve[key][-1]:.1f} %"] = (curve[key][-1], color)
            lowest = min(lowest, *curve[key])
    bottom = max(0.0, 10 * (lowest // 10) - 5)
    axes.set(xlim=(0, 100), ylim=(bottom, 102))
    places = _apart([value for value, _ in ends.values()], 0.17 * (102 - bottom), bottom)
    for (text, (_, color)), place in zip(ends.items(), places, strict=True):
        axes.text(101.5, place, text, color=color, fontsize=9, va="center", clip_on=False)
    axes.set_xlabel("coverage: most confident images answered (%)")
    axes.set_ylabel("accuracy of the answers (%)")
    axes.set_title("Accuracy over coverage")
    clean_axes(axes)
    return figure


def _apart(values: list[float], gap: float, bottom: float) -> list[float]:
    """One or two values, moved to a distance of at least ``gap`` from each other, and of half of it from the bottom."""
    if len(values) == 2 and abs(values[0] - values[1]) < gap:
        middle, side = sum(values) / 2, 1 if values[0] >= values[1] else -1
        values = [middle + side * gap / 2, middle - side * gap / 2]
    up = max(0.0, bottom + gap / 2 - min(values))
    return [value + up for value in values]
