"""Card (README.md) of a classifier that was exported to ONNX or timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from ..class_names import abbreviate, class_names
from ..files import read_json
from .blocks import Markdown, counted
from .card import render_card
from .card_metadata import TAGS, classifier_metadata
from .coverage import coverage_sentences
from .evaluation_report import GROUP_SENTENCE, accuracy_table, certainty_sentences, data_name
from .provenance import public_name


def export_card(
    kind: Literal["onnx", "timm"],
    model: str | Path,
    classifier: Any,
    output_dir: str | Path,
    check: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None = None,
) -> str:
    """Text of README.md.

    Args:
        kind: format of the export.
        model: folder or Hub id of the exported classifier. Its results.json, if there is one, and the license in its
            card are part of the new card.
        classifier: the loaded model.
        output_dir: the export's folder, whose name is the title.
        check: how much it differs from the original: ``largest_difference``, and of an ONNX file what is in check.json.
        preprocessing: of an ONNX file, see `preprocessing_steps`.
    """
    folder, name = Path(model), Path(output_dir).resolve().name
    results, config = _results(folder), classifier.config
    names = class_names(config)
    values = {
        "title": name,
        "kind": kind,
        "quoted_folder": Markdown(json.dumps(f"local-dir:{name}")),
        "original": folder.resolve().name if folder.is_dir() else public_name(model),
        "parameters": f"{sum(parameter.numel() for parameter in classifier.parameters()):,}",
        "classes": counted(len(names), "class"),
        "class_names": abbreviate(names),
        "check": check,
        "difference": f"{check['largest_difference']:.1e}",
        "compared": counted(check["images"], "image") if "images" in check else None,
        "steps": preprocessing,
        **{step: Markdown((preprocessing or {}).get(step)) for step in ("rescale", "mean", "std")},
        "data": data_name(results) if results else None,
        "accuracy_table": Markdown(accuracy_table(results)) if results else None,
        "notes": [
            GROUP_SENTENCE,
            *certainty_sentences(results),
            *coverage_sentences(results.get("coverage")),
        ]
        if results
        else [],
    }
    return render_card(_metadata(kind, folder, name, results), "exported.md", values)


def _results(folder: Path) -> dict[str, Any] | None:
    """The results of the exported model, from its training or from `livt evaluate`."""
    places = (folder, folder / "evaluation")
    found = next((place for place in places if (place / "results.json").is_file()), None)
    return None if found is None else read_json(found, "results.json")


def _metadata(kind: str, folder: Path, name: str, results: Mapping[str, Any] | None) -> ModelCardData:
    card = folder / "README.md"
    license = (ModelCard.load(card).data.license if card.is_file() else None) or "apache-2.0"
    if results is None:
        metadata = ModelCardData(model_name=name, license=license, pipeline_tag="image-classification", tags=TAGS)
    else:
        metadata = classifier_metadata(results, name, license=license)
    metadata.library_name = kind
    metadata.base_model = None if folder.is_dir() else str(folder)
    return metadata
