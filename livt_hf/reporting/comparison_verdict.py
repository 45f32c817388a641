"""What a comparison says in two or three sentences: which loss is best, how surely, and what to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {
    "macro_accuracy": "Over all classes {name} is best with a mean accuracy of {best:.1f} %",
    "accuracy": "Over all images {name} is best with an accuracy of {best:.1f} %",
    "few": "On the rare classes ({few}) {name} is best with {best:.1f} %",
}


def leaders(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Best row overall and on few-shot classes, by mean, and the second best; without a measure that fewer rows have.

    The second best is one of the same pretraining and size, if there is one, so that losses are compared.
    Overall is macro accuracy, which a test set with a long tail does not distort, or accuracy if results lack it.

    Args:
        rows: from `summarize`.

    Returns:
        ``{measure: (best, runner-up)}``, numbers of rows.
    """
    measures = (
        "macro_accuracy" if any(row["macro_accuracy"]["mean"] is not None for row in rows) else "accuracy",
        "few",
    )
    found = {}
    for measure in measures:
        known = [place for place, row in enumerate(rows) if row[measure]["mean"] is not None]
        best, *others = sorted(known, key=lambda place: -rows[place][measure]["mean"]) or [0]
        same = [place for place in others if _start(rows[place]) == _start(rows[best])]
        if others:
            found[measure] = (best, (same or others)[0])
    return found


def _start(row: Mapping[str, Any]) -> tuple:
    return row["pretraining"], row["parameters"]


def verdict(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    differences: Mapping[str, Mapping[str, Any] | None],
    few: str,
    classes: int,
    images: int,
) -> list[str]:
    """The sentences; none if there is nothing to compare.

    Args:
        rows: from `summarize`.
        names: of the rows.
        differences: of the best row to the runner-up in each measure of `leaders`, from `paired_differences`; without
            those that are not known.
        few: which classes are few-shot.
        classes: number of classes; where no row is clearly better than guessing one of them, that is the verdict.
        images: number of test images.
    """
    ranked = leaders(rows)
    guessing = 1 / classes
    sure = 100 * (guessing + 1.96 * math.sqrt(guessing * (1 - guessing) / images))  # percent; normal approximation
    if ranked and rows[next(iter(ranked.values()))[0]][next(iter(ranked))]["mean"] < sure:
        return [
            f"No row is clearly better than guessing ({100 * guessing:.1f} % of {classes} classes), so nothing can be "
            "said about the losses.",
            "Train longer, or start from a pretrained model.",
        ]
    sentences = [
        _ranking(rows, names, measure, places, differences.get(measure), few) for measure, places in ranked.items()
    ]
    return [*sentences, _advice(rows, names, ranked, differences)] if ranked else []


def _ranking(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    measure: str,
    places: tuple[int, int],
    difference: Mapping[str, Any] | None,
    few: str,
) -> str:
    best, second = (rows[place][measure]["mean"] for place in places)
    text = WORDS[measure].format(name=names[places[0]], best=best, few=few)
    text += f", {best - second:.1f} points ahead of {names[places[1]]}; "
    if difference is None:
        return f"{text}whether this difference is significant is not known."
    low, high = (round(end, 1) + 0.0 for end in difference["interval"])  # no -0.0
    certainty = "significant" if difference["significant"] else "not significant"
    text += f"this difference is {certainty} (95 % interval over test images {low:+.1f} to {high:+.1f})"
    spread = _spread(rows, measure, places)
    if difference["significant"] and best - second < spread:
        text += f", but smaller than its spread over seeds ({spread:.1f} points)"
    return f"{text}."


def _spread(rows: Sequence[Mapping[str, Any]], measure: str, places: tuple[int, int]) -> float:
    """Standard deviation, over seeds, of the difference between a run of each row; 0 of one seed."""
    return math.hypot(*(rows[place][measure]["std"] or 0.0 for place in places))


def _advice(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    ranked: Mapping[str, tuple[int, int]],
    differences: Mapping[str, Mapping[str, Any] | None],
) -> str:
    sure = {measure: _is_sure(rows, measure, places, differences.get(measure)) for measure, places in ranked.items()}
    overall, *rest = ranked
    best, second = ranked[overall]
    on_few = ranked[rest[0]][0] if rest else best
    if on_few == best:
        advice = f"Use {names[best]}: {_option(rows[best])}"
        if any(sure.values()) or not any(differences.get(measure) for measure in ranked):
            return f"{advice}."
        more = "test images" if min(len(row["seeds"]) for row in rows) > 2 else "seeds (--seeds 0,1,2)"
        return f"{advice}; the runner-up may be as good, and more {more} would tell."
    if second == on_few and not sure[overall]:
        return f"Use {names[on_few]}, unless the rare classes matter little: {_option(rows[on_few])}."
    options = dict.fromkeys((_option(rows[best]), _option(rows[on_few])))
    return (
        f"Use {names[best]} for the best mean over classes, or {names[on_few]} if the rare classes matter most: "
        f"{', or '.join(options)}."
    )


def _is_sure(
    rows: Sequence[Mapping[str, Any]], measure: str, places: tuple[int, int], difference: Mapping[str, Any] | None
) -> bool:
    """Whether neither other test images nor another seed would be likely to turn the ranking around."""
    best, second = (rows[place][measure]["mean"] for place in places)
    return bool((difference or {}).get("significant")) and best - second >= _spread(rows, measure, places)


ADJUST = {"logit_adjustment": "--target_prior uniform", "tau_norm": "--tau_norm 1"}  # post-hoc method -> its option


def _option(row: Mapping[str, Any]) -> str:
    return f"--loss {row['loss']}" + (f", then livt adjust {ADJUST[row['post_hoc']]}" if row["post_hoc"] else "")
