"""results.json, report.md with its pictures, and report.html, all from one dict (`livt_hf.evaluation.evaluate`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data import decode_image
from ..files import write_text
from ..metrics import describe_groups
from ..prior import GROUP_NAMES, ClassPrior
from .blocks import escape_markdown, markdown_table, percent
from .charts import as_svg, class_frequency_figure, plot_thumbnails, prediction_figure, reliability_figure, save_png
from .provenance import measurement, public_name
from .report_html import (
    GROUP_SENTENCE,
    PRIOR_SENTENCE,
    further_figures,
    group_shares,
    hardest_sentence,
    report_html,
    training_sentence,
)

HARDEST = "hardest.png"


def write_report(results: Mapping[str, Any], output_dir: str | Path, split: Dataset | None = None) -> None:
    """Write results.json, report.md with its pictures, and report.html, a page that needs no other file.

    Args:
        results: what `evaluate_model` returned.
        output_dir: folder, made if it does not exist; its reconstructions.png is shown if ``results`` has a caption
            under ``reconstructions``.
        split: the images that were evaluated, for thumbnails of the hardest ones; without it there are none.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    definition, counts = results["groups"]["definition"], results["class_counts"]
    figures = {
        "class_frequency": class_frequency_figure(counts, results["per_class"], definition),
        "reliability": reliability_figure(results["reliability"], results["ece"]),
        "predictions": prediction_figure(counts, results["test_counts"], results["predicted_counts"], definition),
    }
    for name, figure in figures.items():
        save_png(figure, folder / f"{name}.png")
    images = []
    if split is not None:
        hardest = results["hardest_images"]
        images = [decode_image(split[entry["index"]]["image"]).permute(1, 2, 0).numpy() for entry in hardest]
    if images:
        plot_thumbnails(images, [f"{entry['true']}\nnot {entry['predicted']}" for entry in hardest], folder / HARDEST)
    reconstructions = (folder / "reconstructions.png").read_bytes() if "reconstructions" in results else None
    charts = {name: as_svg(figure) for name, figure in figures.items()}
    write_text(folder / "report.html", report_html(results, charts, images, reconstructions))
    write_text(folder / "report.md", report_markdown(results, bool(images)))
    write_text(folder / "results.json", text)


def report_markdown(results: Mapping[str, Any], with_thumbnails: bool = False) -> str:
    """The text of report.md."""
    parts = [
        f"# Evaluation of {escape_markdown(public_name(results['model']))}",
        f"{results['images']:,} images of {_data_name(results)}. {escape_markdown(training_sentence(results))}",
        accuracy_table(results),
        f"{GROUP_SENTENCE}{_counts_sentence(results)}",
        f"Expected calibration error (ECE): **{percent(results['ece'])} %**, maximum calibration error (MCE): "
        f"**{percent(results['mce'])} %**, over {len(results['reliability'])} bins of equal width.",
        markdown_table(("Further figures", "", ""), further_figures(results), "lrl"),
        "## Accuracy along the long tail",
        "![Training images and accuracy of each class](class_frequency.png)",
        "## What is taken for what",
        _group_confusion_table(results),
        "Test images by the group of their class (row) and of their prediction (column), in percent of the row.",
        _pair_table(results) if results["confused_pairs"] else "No image was classified wrongly.",
        "## What is predicted",
        "![Share of each class in the predictions, the test set and the training set](predictions.png)",
        "## Calibration",
        "![Reliability diagram](reliability.png)",
    ]
    if with_thumbnails:
        parts += ["## Hardest images", hardest_sentence(results), f"![Most confident mistakes]({HARDEST})"]
    if "reconstructions" in results:
        parts += ["## Masked reconstructions", "![Masked reconstructions](reconstructions.png)"]
        parts += [escape_markdown(results["reconstructions"])]
    if "test_prior" in results:
        parts += ["## Other test distributions", prior_section(results["test_prior"])]
    parts += ["## Every class", _class_table(results), "## How it was measured", measurement(results)]
    return "\n\n".join(parts) + "\n"


def _group_confusion_table(results: Mapping[str, Any]) -> str:
    rows = [
        (f"{true}-shot class", *(percent(share) for share in shares), f"{images:,}")
        for true, shares, images in group_shares(results)
    ]
    return markdown_table(("", *(f"→ {group}" for group in GROUP_NAMES), "Images"), rows, "lrrrr")


def _pair_table(results: Mapping[str, Any]) -> str:
    rows = [
        (
            escape_markdown(pair["true"]),
            escape_markdown(pair["predicted"]),
            f"{pair['images']:,}",
            percent(pair["share"]),
        )
        for pair in results["confused_pairs"]
    ]
    return markdown_table(("Class", "Taken for", "Images", "Of its images (%)"), rows, "llrr")


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Overall and group accuracy, with the size and the definition of each group."""
    words, sizes = describe_groups(results["groups"]["definition"]), results["groups"]["sizes"]
    rows = [("All images", f"**{percent(results['accuracy'])}**", sum(sizes.values()), "")]
    rows += [(f"{name}-shot".capitalize(), percent(results[name]), sizes[name], words[name]) for name in GROUP_NAMES]
    return markdown_table(("", "Accuracy (%)", "Classes", "Definition"), rows, "lrrl")


def _class_table(results: Mapping[str, Any]) -> str:
    """Every class, the one with most training images first."""
    prior = ClassPrior(results["class_counts"])
    members = prior.groups(**results["groups"]["definition"])
    group_of = {int(label): group for group, labels in members.items() for label in labels}
    labels = sorted(range(len(prior)), key=lambda label: -prior.counts[label])
    rows = (
        (
            escape_markdown(prior.names[label]),
            f"{prior.counts[label]:,}",
            group_of[label],
            f"{results['test_counts'][prior.names[label]]:,}",
            f"{results['predicted_counts'][prior.names[label]]:,}",
            percent(results["per_class"][prior.names[label]]),
        )
        for label in labels
    )
    header = ("Class", "Training images", "Group", "Test images", "Predicted", "Accuracy (%)")
    return markdown_table(header, rows, "lrlrrr")


def prior_section(accuracies: Mapping[str, Mapping[str, float]]) -> str:
    """The table of `prior_accuracies`, and how it was made."""
    rows = [(name, percent(values["accuracy"]), percent(values["shifted"])) for name, values in accuracies.items()]
    return f"{PRIOR_SENTENCE}\n\n" + markdown_table(("Test distribution", "As it is", "Shifted"), rows, "lrr")


def _data_name(results: Mapping[str, Any]) -> str:
    split = f" ({escape_markdown(results['split'])} split)" if results.get("split") else ""
    return escape_markdown(public_name(results["dataset"])) + split


def _counts_sentence(results: Mapping[str, Any]) -> str:
    source = results.get("class_counts_from")
    return f" The checkpoint holds no class counts; they are those of the {escape_markdown(source)}." if source else ""
