"""Results that others published, from model_cards/published.json."""

from __future__ import annotations

from typing import Any

from livt_hf.files import read_json
from livt_hf.reporting.blocks import markdown_table, percent

from .records import ALL, MODEL_CARDS, NONE, TAIL

MEASURES = {"many": "Many ↑", "medium": "Med. ↑", "few": "Few ↑", "accuracy": "Acc ↑", "ece": "ECE ↓", "mce": "MCE ↓"}
BASE = "ViT-B"


def published() -> dict[str, Any]:
    return read_json(MODEL_CARDS, "published.json")


def published_sizes() -> list[dict[str, Any]]:
    """ImageNet-LT by model size: ``parameters`` in millions, and per loss the measures in percent."""
    return list(published()["livt_losses"].values())


def published_difference(
    first: tuple[str, str], second: tuple[str, str], measure: str, size: str = BASE
) -> float | None:
    """A difference on ImageNet-LT, as printed where the paper gives it; None if it lacks a side.

    Args:
        first, second: loss and kind of pretraining.
    """
    measure = "accuracy" if measure == ALL else measure  # its test set is balanced
    printed = published()["livt_printed_differences"][size].get(f"{first[0]} - {second[0]}", {})
    if measure in printed and first[1] == second[1]:
        return printed[measure]
    sides = [published_value(loss, measure, pretraining, size) for loss, pretraining in (first, second)]
    return None if None in sides else sides[0] - sides[1]  # type: ignore[operator]


def published_value(loss: str, measure: str, pretraining: str = TAIL, size: str = BASE) -> float | None:
    """One result on ImageNet-LT at 224 pixels."""
    measure = "accuracy" if measure == ALL else measure  # its test set is balanced
    if pretraining == TAIL:
        return published()["livt_losses"][size][loss][measure]
    if (loss, pretraining, size) == ("ce", NONE, BASE):
        return published()["livt_results"][0][measure]
    return None


def published_table() -> str:
    """The paper's main results."""
    rows = [
        [row["data"], row["pixels"], row["method"], *(percent(row.get(measure)) for measure in MEASURES)]
        for row in published()["livt_results"]
    ]
    return markdown_table(("Data", "Pixels", "Method", *MEASURES.values()), rows, "lrl" + "r" * len(MEASURES)) + "\n"
