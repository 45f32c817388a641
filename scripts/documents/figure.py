"""The figure of EVIDENCE.md: accuracy of many-, medium- and few-shot classes by loss, a panel per setting."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from livt_hf.losses import SHORT_NAMES
from livt_hf.prior import GROUP_NAMES
from livt_hf.reporting.chart_style import GROUP_COLORS, INK, NARROW, clean_axes

from .intervals import Estimate
from .records import LOSSES, Run, RunSet, mean_of, select

TEXT = 9  # points
TOP = 104  # of the bars' labels
WIDTH = 0.27


def drawn(sets: Sequence[RunSet]) -> str:
    """What the figure shows, as JSON; stored in the PNG, so that a stale one is found whatever draws its text."""
    shown: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for one in sets:
        runs = one.runs
        bars = {loss: {group: mean_of(select(runs, loss), group) for group in GROUP_NAMES} for loss in LOSSES}
        shown[one.folder.name] = {
            loss: {
                group: [round(mean.value, 4), None if mean.half is None else round(mean.half, 4)]
                for group, mean in means.items()
                if mean is not None
            }
            for loss, means in bars.items()
        }
    return json.dumps(shown)


def evidence_figure(sets: Sequence[RunSet]) -> Figure:
    """Bars of the mean over runs with 95 % intervals, where there are enough runs."""
    figure = Figure(figsize=(NARROW, 0.6 + 2.4 * len(sets)), layout="constrained")
    title = "Test accuracy by loss and shot group"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")
    for axes, one in zip(figure.subplots(len(sets), 1, squeeze=False).flat, sets, strict=True):
        _draw(axes, one.runs)
        axes.set_title(one.title.replace(" (JPEG copies)", ""))
        axes.set_ylabel("test accuracy (%)")
        clean_axes(axes)
        axes.title.set_fontsize(TEXT)
        axes.tick_params(labelsize=TEXT)
    return figure


def _draw(axes: Axes, runs: Sequence[Run]) -> None:
    ticks = []
    lowest: dict[int, float] = {}
    for place, loss in enumerate(LOSSES):
        members = select(runs, loss)
        words = f"{len(members)} run{'s' * (len(members) != 1)}" if members else "not run"
        ticks.append(f"{SHORT_NAMES[loss]}\n{words}")
        for offset, group in enumerate(GROUP_NAMES):
            mean = mean_of(members, group)
            if mean is not None:
                _bar(axes, place + (offset - 1) * WIDTH, mean, group)
                lowest[place] = min((mean.ends or (mean.value,))[0], lowest.get(place, 100.0))
    _name_bars(axes, max(lowest, key=lambda place: lowest[place]))
    axes.set_xticks(range(len(LOSSES)), ticks)
    axes.set_xlim(-0.55, len(LOSSES) - 0.45)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))


def _name_bars(axes: Axes, place: int) -> None:
    """Write the groups into the bars with most room below their intervals, in place of a legend."""
    for offset, group in enumerate(GROUP_NAMES):
        color = INK if group == "medium" else "white"  # the better contrast
        position = place + (offset - 1) * WIDTH
        axes.text(position, 2, group, rotation=90, ha="center", va="bottom", size=TEXT, color=color, weight="bold")


def _bar(axes: Axes, position: float, mean: Estimate, group: str) -> None:
    axes.bar(position, mean.value, WIDTH * 0.92, color=GROUP_COLORS[group], linewidth=0)
    low, high = mean.ends or (mean.value, mean.value)
    low, high = max(low, 0), min(high, 100)
    if mean.ends is not None:
        ends = np.array([[mean.value - low], [high - mean.value]])
        axes.errorbar(position, mean.value, ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.text(position, min(high, TOP) + 1, f"{mean.value:.0f}", ha="center", va="bottom", fontsize=TEXT, color=INK)
