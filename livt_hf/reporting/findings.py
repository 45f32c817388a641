"""The first three sentences of a report, from its results: how good, which classes are bad, what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..losses import BALANCED_LOSSES
from ..prior import GROUP_NAMES, ClassPrior
from .blocks import counted, percent
from .certainty import interval_of
from .chart_style import short_names

GAP = 10.0  # points of accuracy between rare and frequent classes from which one of them is behind
POOR_ECE = 10.0  # percent, from which confidences mislead: that often, in points, they are off
WIDE = 20.0  # points between the ends of an interval from which it says little
POOR = 70.0  # macro accuracy below which a better start is worth more than another loss
SMALL = 50_000  # training images; with more, training from scratch can be enough
NAMED = 3  # classes


def findings(results: Mapping[str, Any]) -> list[str]:
    """Three sentences for the beginning of a report.

    Args:
        results: from `livt_hf.evaluation.evaluate.evaluate_model`, also of earlier versions.
    """
    return [_how_good(results), _which_classes(results), next_step(results)]


def _how_good(results: Mapping[str, Any]) -> str:
    interval = interval_of(results, "accuracy")
    ends = f" (95 % confidence interval {percent(interval[0])}–{percent(interval[1])} %)" if interval else ""
    tested = sum(value is not None for value in results["per_class"].values())
    kind = results.get("split") or "test"
    return (
        f"Of {counted(results['images'], f'{kind} image')} of {counted(tested, 'class')}, "
        f"{percent(results['accuracy'])} % are classified correctly{ends}; the mean over classes (macro accuracy) is "
        f"{percent(results['macro_accuracy'])} %."
    )


def _which_classes(results: Mapping[str, Any]) -> str:
    counts, accuracies = results["class_counts"], results["per_class"]
    tested = [name for name in counts if accuracies[name] is not None]
    worst = sorted(tested, key=lambda name: (accuracies[name], counts[name]))
    never = sum(accuracies[name] == 0 for name in tested)
    named = NAMED if len(tested) > 2 * NAMED else min(max(never, 1), NAMED)
    shown = short_names(worst[:named], 40)
    values = [f"{name} ({percent(accuracies[full])} %)" for name, full in zip(shown, worst, strict=False)]
    if never == len(tested):
        return "No image is classified correctly."
    if accuracies[worst[0]] == 100:
        words = "Every image is classified correctly"
    elif never > len(shown):
        words = f"{never:,} classes have no image classified correctly, among them {_listed(shown)}"
    elif len(shown) > 1:
        words = f"The classes with the lowest accuracy are {_listed(values)}"
    else:
        words = f"The class with the lowest accuracy is {values[0]}"
    return f"{words}; {_rarity(results)}."


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _rarity(results: Mapping[str, Any]) -> str:
    ends = _rare_and_frequent(results)
    if ends is None:
        return "rare and frequent classes cannot be compared"
    (rare, low), (frequent, high) = ends
    if _is_behind(low, high):
        verdict = "rare classes are behind"
    else:
        verdict = "frequent classes are behind" if _is_behind(high, low) else "rare classes are not behind"
    return f"{verdict} ({rare} {percent(low)} %, {frequent} {percent(high)} %)"


def _is_behind(accuracy: float, other: float) -> bool:
    """Whether an accuracy is `GAP` points below another, or below half of it."""
    return other - accuracy >= GAP or 2 * accuracy < other


def _rare_and_frequent(results: Mapping[str, Any]) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """Accuracy of the rarest and of the most frequent group; of the halves of the classes if only one was measured.

    None if there is nothing to compare: one tested class, or classes of the same size.
    """
    measured = [name for name in GROUP_NAMES if results[name] is not None]
    if len(measured) > 1:
        rarest, largest = measured[-1], measured[0]
        return (f"{rarest}-shot", results[rarest]), (f"{largest}-shot", results[largest])
    prior = ClassPrior(results["class_counts"])
    order = [label for label in np.argsort(prior.counts, kind="stable") if _accuracy(results, prior, label) is not None]
    if len(order) < 2 or prior.counts[order[0]] == prior.counts[order[-1]]:
        return None
    half = len(order) // 2
    low, high = (
        float(np.mean([_accuracy(results, prior, label) for label in part])) for part in (order[:half], order[-half:])
    )
    return ("the rarer half", low), ("the more frequent half", high)


def _accuracy(results: Mapping[str, Any], prior: ClassPrior, label: int) -> float | None:
    return results["per_class"][prior.names[label]]


def next_step(results: Mapping[str, Any]) -> str:
    """What is most likely to help, by the first rule that holds, and calibration where confidences mislead."""
    step, calibration = _accuracy_step(results), None if _is_chance(results) else calibration_step(results)
    if step is None and calibration is None:
        return "What to try: nothing stands out; livt compare shows whether another loss is better."
    steps = [step, f"calibrate with {calibration}" if calibration else None]
    return f"What to try: {'; '.join(words for words in steps if words)}."


def _accuracy_step(results: Mapping[str, Any]) -> str | None:
    interval, ends = interval_of(results, "accuracy"), _rare_and_frequent(results)
    low, high = (0.0, 0.0) if ends is None else (ends[0][1], ends[1][1])  # of rare and of frequent classes
    if results["images"] < 100 if interval is None else interval[1] - interval[0] > WIDE:
        return "test on more images, since so few leave the accuracy uncertain"
    is_adjusted = bool((results.get("adjustment") or {}).get("target_prior"))
    is_balanced = results["loss"] in BALANCED_LOSSES
    if _is_behind(low, high) and results["loss"] is not None and not is_balanced and not is_adjusted:
        balanced = "a balanced loss (--loss bal_bce, or bal_ce for short training), which helps rare classes"
        return f"train longer, with {balanced}" if _is_chance(results) else f"fine-tune with {balanced}"
    if results["loss"] is not None and _is_chance(results):
        return "train longer, or start from a pretrained model, since this may be no better than guessing"
    if _is_behind(high, low) and is_balanced and not is_adjusted:
        return "fine-tune with a smaller --tau, or livt adjust --target_prior with the class frequencies to expect"
    small = sum(results["class_counts"].values()) < SMALL
    is_poor, start = results["macro_accuracy"] < POOR, results["pretrained"] or ""
    if is_poor and small and results["loss"] is not None and "/" not in start:  # not from the Hub
        if not start:
            return "start from a pretrained model (--pretrained facebook/dinov2-small for photos, or livt pretrain)"
        return "train longer, or start from a model of many images (--pretrained facebook/dinov2-small for photos)"
    if _is_behind(low, high) or is_poor:
        return "collect more training images of the classes with the lowest accuracy"
    if any(entry["confidence"] >= 90 for entry in results["hardest_images"]):
        return "look at the most confident mistakes below, and check the labels with livt dataset check --model"
    return None


def _is_chance(results: Mapping[str, Any]) -> bool:
    """Whether the accuracy over classes may be that of guessing."""
    interval = interval_of(results, "macro_accuracy")
    return (results["macro_accuracy"] if interval is None else interval[0]) <= 100 / len(results["class_counts"])


def calibration_step(results: Mapping[str, Any]) -> str | None:
    """How to mend confidences that mislead; None if they do not, or if a temperature was fitted already."""
    if results["ece"] < POOR_ECE or (results.get("adjustment") or {}).get("temperature", 1.0) != 1.0:
        return None
    bins = [bin_ for bin_ in results["reliability"] if bin_["count"]]
    gap = sum(bin_["count"] * (bin_["confidence"] - bin_["accuracy"]) for bin_ in bins)
    side = "high" if gap > 0 else "low"
    return f"livt adjust --temperature fit, since confidences are too {side} (ECE {percent(results['ece'])} %)"
