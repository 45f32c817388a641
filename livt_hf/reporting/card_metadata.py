"""Metadata of model cards, from which the Hub shows results (`model-index`), pipeline and widget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from .provenance import public_name

TAGS = ["livt", "long-tailed-recognition", "imbalanced-data", "vision", "vit"]
AUTOENCODER_TAGS = [*TAGS[:4], "vit_mae", "masked-image-modeling", "pretraining"]
METRIC_NAMES = {
    "accuracy": "Accuracy (%)",
    "many": "Many-shot accuracy (%)",
    "medium": "Medium-shot accuracy (%)",
    "few": "Few-shot accuracy (%)",
    "ece": "Expected calibration error (%)",
    "mce": "Maximum calibration error (%)",
}
METRIC_TYPES = {"many": "many_shot_accuracy", "medium": "medium_shot_accuracy", "few": "few_shot_accuracy"}
EXAMPLES = "examples"  # subfolder of the model with images for the Hub's widget


def classifier_metadata(
    results: Mapping[str, Any],
    model_name: str,
    dataset_id: str | None = None,
    license: str = "apache-2.0",
    widget: list[dict[str, str]] | None = None,
) -> ModelCardData:
    """Metadata of a classifier. Metrics that are None are omitted; the base model is given if it is on the Hub."""
    pretrained = results["pretrained"] or ""
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", pretrained) and not Path(pretrained).exists()
    tta = results.get("tta")
    measured = {key: results[key] for key in METRIC_NAMES if results.get(key) is not None}
    return ModelCardData(
        model_name=model_name,
        license=license,
        base_model=pretrained if on_hub else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=TAGS + ["masked-image-modeling"] * bool(results["pretrained"]),
        datasets=[dataset_id] if dataset_id else None,
        metrics=[METRIC_TYPES.get(key, key) for key in measured] or None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id or _slug(public_name(results["dataset"])),
                dataset_name=public_name(results["dataset"]),
                dataset_split=results.get("split"),
                metric_type=METRIC_TYPES.get(key, key),
                metric_name=METRIC_NAMES[key] + (f", test-time ensembling {tta}" if tta else ""),
                metric_value=round(value, 2),
            )
            for key, value in measured.items()
        ]
        or None,
        widget=widget,
    )


def autoencoder_metadata(dataset_id: str | None = None) -> ModelCardData:
    """Metadata of a masked autoencoder."""
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=AUTOENCODER_TAGS,
        datasets=[dataset_id] if dataset_id else None,
    )


def example_images(folder: Path, repo_id: str | None) -> list[dict[str, str]] | None:
    """Example images for the Hub's widget, which needs their URLs; None without images or repository."""
    images = sorted(file for file in (folder / EXAMPLES).glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if repo_id is None or not images:
        return None
    base = f"https://huggingface.co/{repo_id}/resolve/main/{EXAMPLES}"
    return [{"src": f"{base}/{quote(file.name)}", "example_title": " ".join(file.stem.split())} for file in images]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"
