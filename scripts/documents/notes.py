"""Hand-written notes, whose figures are filled in from the records.

`{SET: LOSS, MEASURE}` is a mean in percent and `{SET: LOSS - LOSS, MEASURE}` a difference in points, which must be
positive, so that a sentence that became false is found. SET is a folder of comparisons; `held-out`, with the names of
its runs in place of losses; `paper ViT-B`; or `published`, with an entry of published.json. `LOSS@none` and
`LOSS@balanced` name other pretraining; `all` is macro accuracy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from livt_hf.reporting.blocks import percent

from .published import published, published_difference, published_value
from .records import ALL, BALANCED, HELD_OUT, NONE, TAIL, TRIED, RunSet, mean_of, select

FIGURE = re.compile(r"\{([\w -]+): ([\w@-]+)(?: - ([\w@-]+))?, (\w+)\}")
PRETRAINING = {"": TAIL, "balanced": BALANCED, "none": NONE}


def filled(notes: str, sets: Sequence[RunSet], comparisons: Path) -> str:
    """The notes with their figures.

    Raises:
        ValueError: a figure is not measured, or a difference is not positive.
    """
    found = {one.folder.name: one.runs for one in sets}

    def value(source: str, name: str, measure: str) -> float | None:
        loss, _, pretraining = name.partition("@")
        if source == HELD_OUT:
            tried = json.loads((comparisons / HELD_OUT / TRIED).read_text(encoding="utf-8"))
            return tried[name]["accuracy" if measure == ALL else measure]
        if source == "published":
            return published()[name]["accuracy" if measure == ALL else measure]
        if source.startswith("paper "):
            return published_value(loss, measure, PRETRAINING[pretraining], source.removeprefix("paper "))
        mean = mean_of(select(found.get(source, []), loss, PRETRAINING[pretraining]), measure)
        return None if mean is None else mean.value

    def figure(match: re.Match[str]) -> str:
        source, first, second, measure = match.groups()
        measure = ALL if measure == "all" else measure
        values = [value(source, name, measure) for name in (first, second) if name]
        if None in values:
            raise ValueError(f"{match.group()}: not measured; reword the sentence")
        if len(values) == 1:
            return percent(values[0])
        if source.startswith("paper "):  # as printed
            one, other = ((name.partition("@")[0], PRETRAINING[name.partition("@")[2]]) for name in (first, second))
            difference = published_difference(one, other, measure, source.removeprefix("paper ")) or 0.0
        else:
            difference = values[0] - values[1]  # type: ignore[operator]
        if difference <= 0:
            raise ValueError(f"{match.group()}: {difference:.1f} is not positive; reword the sentence")
        return percent(difference)

    return FIGURE.sub(figure, notes)
