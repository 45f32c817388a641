"""Which rows of a comparison differ from its first row beyond the sampling of the test images (paired bootstrap)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.prediction_file import read_predictions
from ..files import PREDICTIONS_FILE
from ..metrics import paired_differences
from ..metrics.bootstrap import LEVEL, RESAMPLES, SEED
from ..reporting.comparison_table import row_key
from ..reporting.comparison_verdict import leaders

Predictions = dict[str, np.ndarray]  # of a run, from `read_predictions`


def with_differences(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    output_dir: Path,
    class_counts: Mapping[str, int],
    groups: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, each with its "difference" to the first one, and how the differences were found.

    Args:
        rows: from `summarize`.
        runs: of the rows; the predictions of each are in ``output_dir / run["name"]``.
        class_counts, groups: as in `long_tail_accuracy`.

    Returns:
        The rows with ``"difference"``, from `paired_differences`: None for the baseline, and for a row that cannot be
        compared, whose reason is then under ``"not_compared"``; ``{"baseline": row number, "leaders", "level",
        "resamples", "seed"}``, "leaders" being the difference of the best row to the runner-up in each measure of
        `leaders`, if they can be compared.
    """
    names = list(class_counts)
    members = {row_key(row): [run for run in runs if row_key(run) == row_key(row)] for row in rows}
    found = [[_predictions(run, output_dir, names) for run in members[row_key(row)]] for row in rows]

    @functools.cache
    def difference(place: int, baseline: int) -> dict[str, Any]:
        labels = found[baseline][0]["labels"]  # type: ignore[index]
        return paired_differences(labels, found[place], found[baseline], class_counts, groups)  # type: ignore[arg-type]

    compared = []
    for place, row in enumerate(rows):
        reason = None if place == 0 else _why_not(found[place], found[0])
        own = difference(place, 0) if place and reason is None else None
        compared.append({**row, "difference": own} | ({"not_compared": reason} if reason else {}))
    leading = {
        measure: difference(best, second)[measure]
        for measure, (best, second) in leaders(rows).items()
        if _why_not(found[best], found[second]) is None
    }
    return compared, {"baseline": 0, "leaders": leading, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def _predictions(run: Mapping[str, Any], output_dir: Path, names: Sequence[str]) -> Predictions | None:
    """Those of a run; None if it has none, or those of another evaluation than its results."""
    predicted = read_predictions(output_dir / run["name"], names)
    if predicted is None:
        return None
    accuracy = 100 * float((predicted["labels"] == predicted["predictions"]).mean())
    return predicted if abs(accuracy - run["accuracy"]) < 1e-6 else None


def _why_not(row: Sequence[Predictions | None], baseline: Sequence[Predictions | None]) -> str | None:
    """Why two rows cannot be compared; None if they can."""
    for models, whose in ((baseline, "the first row"), (row, "this row")):
        if any(model is None for model in models):
            return f"{PREDICTIONS_FILE}, from which rows are compared, is missing or outdated in a run of {whose}"
    first, *others = (model for model in (*baseline, *row) if model is not None)
    same = all(np.array_equal(other[key], first[key]) for other in others for key in ("image", "labels"))
    return None if same else "the runs were evaluated on other images"
