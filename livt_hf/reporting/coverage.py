"""Sentences on what the splits of a dataset lack, for the log, reports and cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..class_names import abbreviate
from .blocks import counted


def coverage_sentences(coverage: Mapping[str, Any] | None) -> list[str]:
    """One sentence for each thing that is lacking.

    Args:
        coverage: ``coverage`` of results.json; None for results without it.
    """
    if coverage is None:
        return []
    total = coverage["classes"]
    sentences = [
        f"Classes without {split} images: {_of(names, total)}. Means over the classes of that split leave them out."
        for split, names in coverage["without_images"].items()
    ]
    if single := coverage["single_training_image"]:
        sentences.append(f"Classes with a single training image: {_of(single, total)}.")
    for split, counts in coverage["left_out"].items():
        images = sum(counts.values())
        named = abbreviate([f"{name} ({count:,})" for name, count in counts.items()])
        sentences.append(
            f"Left out of the {split} split, because no training image has their class: {counted(images, 'image')} of "
            f"{counted(len(counts), 'class')} ({named})."
        )
    return sentences


def _of(names: list[str], total: int) -> str:
    return f"{len(names):,} of {total:,} ({abbreviate(names)})"
