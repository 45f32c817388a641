"""Report of an evaluation: results.json, report.md with its charts, and report.html, from one dict of results.

The sections are built once and rendered twice (`pages`). report.html is self-contained (no other files, no network) and
follows the reader's light or dark theme. All text from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files import write_text
from ..losses import loss_words
from ..metrics import describe_groups
from ..prior import GROUP_NAMES, ClassPrior
from .blocks import (
    Block,
    Picture,
    Section,
    Share,
    Strong,
    Table,
    counted,
    data_uri,
    percent,
    percent_range,
    to_markdown,
)
from .certainty import (
    SELECTIVE,
    SELECTIVE_CAPTION,
    interval_of,
    interval_sentence,
    selective_figure,
    selective_sentence,
    selective_table,
    tta_sentence,
)
from .chart_style import as_svg, save_png
from .charts import class_frequency_figure, plot_thumbnails, prediction_figure, reliability_figure
from .coverage import coverage_sentences
from .pages import Tile, html_page, markdown_page
from .provenance import measurement_blocks, public_name
from .thumbnails import thumbnail

CHARTS = {  # file -> caption; every report and card has them
    "class_frequency.png": "Training images and accuracy of each class, largest class first",
    "predictions.png": "Class distribution of predictions, test set and training set",
    "reliability.png": "Reliability diagram: accuracy by confidence",
}
HARDEST = "hardest.png"
RECONSTRUCTIONS = "reconstructions.png"
GROUP_SENTENCE = (
    "Group accuracy is the mean of per-class accuracies, so that every class counts equally; a dash means that the "
    "group has no test images."
)
PRIOR_SENTENCE = (
    "Accuracy in percent under other class priors at test time: forward follows the long tail of the training set, "
    "backward reverses it; the number is the imbalance factor (Hong et al., CVPR 2021). Per-class accuracies are "
    "weighted by the prior; no images are resampled. Prior-corrected: logits shifted from the prior that the model "
    "assumes to the test prior, which is taken as known."
)


def write_report(results: Mapping[str, Any], output_dir: str | Path, images: Sequence[np.ndarray] = ()) -> None:
    """Write results.json, report.md with its charts, and the self-contained report.html.

    Args:
        results: from `evaluate_model`.
        output_dir: created if needed; must contain reconstructions.png if ``results["reconstructions"]`` is its
            caption.
        images: those of ``results["hardest_images"]``, uint8 (H, W, 3) of any size; by default none are shown.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    figures = chart_figures(results)
    for file, figure in figures.items():
        save_png(figure, folder / file)
    if len(images):
        titles = [f"{entry['true']}\n→ {entry['predicted']}" for entry in results["hardest_images"]]
        plot_thumbnails(images, titles, folder / HARDEST)
    elements = {file: as_svg(figure) for file, figure in figures.items()}
    if "reconstructions" in results:
        source = data_uri((folder / RECONSTRUCTIONS).read_bytes())
        elements[RECONSTRUCTIONS] = f'<img class="wide" alt="Masked reconstructions" src="{source}">'
    sections = report_sections(results, images, elements)
    page = (_title(results), _subtitle(results))
    write_text(folder / "report.html", html_page(*page, _tiles(results), sections))
    write_text(folder / "report.md", markdown_page(*page, sections))
    write_text(folder / "results.json", text)


def chart_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of `CHARTS` and, unless the results are of an earlier version, `SELECTIVE`, by file name."""
    definition, counts = results["groups"]["definition"], results["class_counts"]
    figures = {
        "class_frequency.png": class_frequency_figure(counts, results["per_class"], definition),
        "predictions.png": prediction_figure(counts, results["test_counts"], results["predicted_counts"], definition),
        "reliability.png": reliability_figure(results["reliability"], results["ece"]),
    }
    return figures | ({SELECTIVE: selective_figure(results["selective"])} if "selective" in results else {})


def report_markdown(results: Mapping[str, Any], images: Sequence[np.ndarray] = ()) -> str:
    """The text of report.md."""
    return markdown_page(_title(results), _subtitle(results), report_sections(results, images, {}))


def _title(results: Mapping[str, Any]) -> str:
    return f"Evaluation of {public_name(results['model'])}"


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    return [
        (percent(results[key]), name, group)
        for key, name, group in (
            ("accuracy", "accuracy (%)", "all"),
            *((group, f"{group}-shot (%)", group) for group in GROUP_NAMES),
            ("ece", "ECE (%)", "all"),
            ("mce", "MCE (%)", "all"),
        )
    ]


def report_sections(
    results: Mapping[str, Any], images: Sequence[np.ndarray], elements: Mapping[str, str]
) -> list[Section]:
    """The report below its title.

    Args:
        images: as in `write_report`.
        elements: HTML elements in place of image files, by file name; none for Markdown.
    """
    charts = [Picture(caption, file, elements.get(file, "")) for file, caption in CHARTS.items()]
    frequency, predictions, reliability = charts
    sections = [
        Section("", [*summary_blocks(results), _metric_table(results)]),
        Section("Accuracy along the long tail", [frequency]),
        Section("Confusion between groups", _group_confusion(results)),
        Section("Most confused classes", [_confused_pairs(results)]),
        Section("Predicted class distribution", [predictions, _prediction_sentence(results)]),
        Section("Calibration", [reliability]),
    ]
    if "selective" in results:
        picture = Picture(SELECTIVE_CAPTION, SELECTIVE, elements.get(SELECTIVE, ""))
        blocks: list[Block] = [picture, selective_sentence(results), selective_table(results)]
        sections.append(Section("Accuracy over coverage", blocks))
    if len(images):
        thumbnails = Picture("Most confident mistakes", HARDEST, _thumbnails(results, images))
        sections.append(Section("Most confident mistakes", [_mistakes_sentence(results), thumbnails]))
    if "reconstructions" in results:
        picture = Picture("Masked reconstructions", RECONSTRUCTIONS, elements.get(RECONSTRUCTIONS, ""))
        sections.append(Section("Masked reconstructions", [picture, results["reconstructions"]]))
    if "test_prior" in results:
        rows = [(name, percent(of["accuracy"]), percent(of["shifted"])) for name, of in results["test_prior"].items()]
        table = Table(("Test distribution", "Uncorrected", "Prior-corrected"), rows, "lrr")
        sections.append(Section("Other test distributions", [PRIOR_SENTENCE, table]))
    sections.append(Section("Per-class results", [_class_table(results)]))
    return [*sections, Section("Evaluation setup", measurement_blocks(results))]


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Markdown table of overall and group accuracy, with the size and the definition of each group."""
    return to_markdown(_accuracy_table(results))


def summary_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Accuracy of the groups, what it is a mean of, and what the splits lack."""
    sentence = GROUP_SENTENCE + _counts_sentence(results)
    knn = knn_sentence(results)
    return [
        _accuracy_table(results),
        sentence,
        *certainty_sentences(results),
        *([knn] if knn else []),
        *coverage_sentences(results.get("coverage")),
    ]


def knn_sentence(results: Mapping[str, Any]) -> str | None:
    """Accuracy of k-NN on the features of a linear probe; None for results without it."""
    knn = results.get("knn")
    if knn is None:
        return None
    groups = ", ".join(f"{name}-shot {percent(knn[name])}" for name in GROUP_NAMES)
    return (
        f"For comparison, weighted k-NN (k = {knn['neighbors']}) on the same frozen features: accuracy "
        f"{percent(knn['accuracy'])} % ({groups})."
    )


def certainty_sentences(results: Mapping[str, Any]) -> list[str]:
    """What the intervals are, and which test-time ensembling was used."""
    return [sentence for sentence in (interval_sentence(results), tta_sentence(results.get("tta"))) if sentence]


def _accuracy_table(results: Mapping[str, Any]) -> Table:
    words, measured = describe_groups(results["groups"]["definition"]), _classes_measured(results)
    shown = {name: percent_range(results[name], interval_of(results, name)) for name in ("accuracy", *GROUP_NAMES)}
    rows: list[tuple] = [("All images", Strong(shown["accuracy"]), measured["all"], "")]
    rows += [(f"{name}-shot".capitalize(), shown[name], measured[name], words[name]) for name in GROUP_NAMES]
    return Table(("", "Accuracy (%)", "Classes", "Definition"), rows, "lrrl")


def _classes_measured(results: Mapping[str, Any]) -> dict[str, str]:
    """Number of classes of each group, and of "all": "4", or "3 of 4" if only 3 of them have test images."""
    tested = np.array([value is not None for value in results["per_class"].values()])  # (C,)
    members = ClassPrior(results["class_counts"]).groups(**results["groups"]["definition"])
    numbers = {"all": tested} | {group: tested[labels] for group, labels in members.items()}
    return {name: f"{len(of):,}" if of.all() else f"{int(of.sum()):,} of {len(of):,}" for name, of in numbers.items()}


def _metric_table(results: Mapping[str, Any]) -> Table:
    """Name, value and meaning of the metrics besides group accuracy."""
    accuracies = [value for value in results["per_class"].values() if value is not None]
    zero = sum(value == 0 for value in accuracies)
    bins = len(results["reliability"])
    rows = [
        (
            "ECE (%)",
            percent_range(results["ece"], interval_of(results, "ece")),
            f"expected calibration error, {bins} equal-width bins",
        ),
        ("MCE (%)", percent(results["mce"]), "maximum calibration error, same bins"),
        ("Top-5 accuracy (%)", percent(results["top5"]), "reported for more than five classes"),
        (
            "Macro accuracy (%)",
            percent_range(results["macro_accuracy"], interval_of(results, "macro_accuracy")),
            "mean over tested classes",
        ),
        ("Harmonic mean (%)", percent(results["harmonic_mean"]), "over tested classes; 0 if any of them is"),
        (
            "Worst class (%)",
            percent(results["worst_class"]),
            f"{zero:,} of {counted(len(accuracies), 'class')} without a correct prediction",
        ),
        (
            "PDC",
            "–" if results["pdc"] is None else f"{results['pdc']:.3f}",
            "0: predicted class distribution equals the test set's; 1: as far from it as the training set's",
        ),
    ]
    return Table(("Other metrics", "", ""), rows, "lrl")


def _group_confusion(results: Mapping[str, Any]) -> list[str | Table]:
    rows = []
    for true in GROUP_NAMES:
        counts = [results["group_confusion"][true][predicted] for predicted in GROUP_NAMES]
        total = sum(counts)
        shares = [Share(100 * count / total) if total else percent(None) for count in counts]
        rows.append((f"{true}-shot", *shares, f"{total:,}"))
    table = Table(("True group", *(f"→ {group}" for group in GROUP_NAMES), "Images"), rows, "lrrrr", "matrix")
    return [table, "Rows: group of the true class; columns: group of the predicted class, in percent of the row."]


def _confused_pairs(results: Mapping[str, Any]) -> str | Table:
    if not results["confused_pairs"]:
        return "No image was misclassified."
    rows = [
        (pair["true"], pair["predicted"], f"{pair['images']:,}", percent(pair["share"]))
        for pair in results["confused_pairs"]
    ]
    return Table(("Class", "Predicted as", "Images", "Of the class (%)"), rows, "llrr")


def _class_table(results: Mapping[str, Any]) -> Table:
    """Every class, largest first."""
    prior = ClassPrior(results["class_counts"])
    members = prior.groups(**results["groups"]["definition"])
    group_of = {int(label): group for group, labels in members.items() for label in labels}
    rows = []
    for label in sorted(range(len(prior)), key=lambda label: -prior.counts[label]):
        name = prior.names[label]
        tested, predicted = results["test_counts"][name], results["predicted_counts"][name]
        accuracy = percent(results["per_class"][name])
        rows.append((name, f"{prior.counts[label]:,}", group_of[label], f"{tested:,}", f"{predicted:,}", accuracy))
    header = ("Class", "Training images", "Group", "Test images", "Predicted", "Accuracy (%)")
    return Table(header, rows, "lrlrrr", "sortable")


def data_name(results: Mapping[str, Any]) -> str:
    """Dataset and split."""
    split = f" ({results['split']} split)" if results.get("split") else ""
    return public_name(results["dataset"]) + split


def _subtitle(results: Mapping[str, Any]) -> str:
    return f"{counted(results['images'], 'image')} of {data_name(results)}. {_training_sentence(results)}"


def _training_sentence(results: Mapping[str, Any]) -> str:
    """How the model was trained and adjusted, according to its config."""
    done = adjustments(results.get("adjustment"))
    adjusted = f" Adjusted post hoc: {', '.join(done)}." if results.get("adjustment") else ""
    if results["loss"] is None:
        return f"The checkpoint does not record how it was trained.{adjusted}"
    start = f"initialized from {public_name(results['pretrained'])}" if results["pretrained"] else "from scratch"
    return f"Trained {start} with loss {loss_words(results['loss'], results['tau'])}.{adjusted}"


def adjustments(adjustment: Mapping[str, Any] | None) -> list[str]:
    """The changes that `livt adjust` made, in words; ``adjustment`` as in a config."""
    if not adjustment:
        return []
    target = adjustment["target_prior"]
    words = [f"target prior {target if isinstance(target, str) else 'from a file'}"] if target else []
    words += [f"tau-norm {adjustment['tau_norm']:g}"] if adjustment["tau_norm"] is not None else []
    return words + ([f"temperature {adjustment['temperature']:.4g}"] if adjustment["temperature"] != 1.0 else [])


def _counts_sentence(results: Mapping[str, Any]) -> str:
    source = results.get("class_counts_from")
    return f" The checkpoint stores no class counts; those of the {source} are used." if source else ""


def _prediction_sentence(results: Mapping[str, Any]) -> str:
    tested = [name for name, images in results["test_counts"].items() if images]
    never = sum(results["predicted_counts"][name] == 0 for name in tested)
    return f"Never predicted: {never:,} of the {counted(len(tested), 'class')} with test images."


def _mistakes_sentence(results: Mapping[str, Any]) -> str:
    group = results["hardest_images"][0]["group"]
    return (
        f"High-confidence errors on {group}-shot classes: typical confusions of rare classes, and possible label "
        "errors."
    )


def _thumbnails(results: Mapping[str, Any], images: Sequence[np.ndarray]) -> str:
    figures = (
        thumbnail(
            image,
            f"image {entry['index']}",
            entry["true"],
            f"predicted as {entry['predicted']}",
            f"{entry['confidence']:.0f} % confidence, image {entry['index']}",
        )
        for entry, image in zip(results["hardest_images"], images, strict=True)
    )
    return f'<div class="thumbnails">{"".join(figures)}</div>'
