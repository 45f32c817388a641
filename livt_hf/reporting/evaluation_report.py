"""Report of an evaluation: results.json, report.md with its charts, and report.html, from one dict of results.

The sections are built once and rendered twice (`pages`). report.html is self-contained (no other files, no network) and
follows the reader's light or dark theme. All text from data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from ..losses import loss_words
from ..metrics import describe_groups
from ..prior import GROUP_NAMES, ClassPrior
from .blocks import (
    Block,
    InMarkdown,
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
from .chart_style import Chart, write_chart
from .charts import class_frequency_figure, plot_thumbnails, prediction_figure, reliability_figure
from .class_tables import (
    CONFUSION,
    CONFUSION_CAPTION,
    CONFUSION_CSV,
    LARGEST_FIRST,
    PER_CLASS,
    class_table,
    confusion_csv,
    confusion_figure,
    per_class_csv,
)
from .coverage import coverage_sentences
from .findings import calibration_step, findings
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
GROUP_SENTENCE = "Group accuracy is the mean of per-class accuracies, so that every class counts equally."
CLASS_SENTENCE = (
    "The accuracy of a class is its recall: the share of its images that are predicted as it. Precision is the share "
    "of its predictions that are right, F1 the harmonic mean of both; a dash means that a class has no test images, or "
    f"no predictions. {PER_CLASS} has these numbers."
)
PRIOR_SENTENCE = (
    "Accuracy in percent under other class priors at test time: forward follows the long tail of the training set, "
    "backward reverses it; the number is the imbalance factor (Hong et al., CVPR 2021). Per-class accuracies are "
    "weighted by the prior; no images are resampled. Prior-corrected: logits shifted from the prior that the model "
    "assumes to the test prior, which is taken as known."
)


def write_report(results: Mapping[str, Any], output_dir: str | Path, images: Sequence[np.ndarray] = ()) -> None:
    """Write results.json, per_class.csv, confusion.csv, report.md with its charts, and the self-contained report.html.

    Args:
        results: from `evaluate_model`.
        output_dir: created if needed; must contain reconstructions.png if ``results["reconstructions"]`` is its
            caption.
        images: those of ``results["hardest_images"]``, uint8 (H, W, 3) of any size; by default none are shown.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    elements = {file: write_chart(chart, folder / file) for file, chart in charts_of(results).items()}
    if len(images):
        titles = [f"{entry['true']}\n→ {entry['predicted']}" for entry in results["hardest_images"]]
        plot_thumbnails(images, titles, folder / HARDEST)
    if "reconstructions" in results:
        source = data_uri((folder / RECONSTRUCTIONS).read_bytes())
        elements[RECONSTRUCTIONS] = f'<div class="chart"><img alt="Masked reconstructions" src="{source}"></div>'
    sections = report_sections(results, images, elements)
    page, lead = (_title(results), _subtitle(results)), findings(results)
    write_text(folder / PER_CLASS, per_class_csv(results))
    if results.get("confusion"):
        write_text(folder / CONFUSION_CSV, confusion_csv(results))
    write_text(folder / "report.html", html_page(*page, _tiles(results), sections, lead))
    write_text(folder / "report.md", markdown_page(*page, sections, lead))
    write_text(folder / "results.json", text)


def charts_of(results: Mapping[str, Any]) -> dict[str, Chart]:
    """Those of `CHARTS` and, unless the results are of an earlier version, `SELECTIVE` and `CONFUSION`."""
    definition, counts = results["groups"]["definition"], results["class_counts"]
    distributions = counts, results["test_counts"], results["predicted_counts"]
    charts: dict[str, Chart] = {
        "class_frequency.png": partial(class_frequency_figure, counts, results["per_class"], definition),
        "predictions.png": partial(prediction_figure, *distributions, definition),
        "reliability.png": lambda _: reliability_figure(results["reliability"], results["ece"]),
    }
    if "selective" in results:
        charts[SELECTIVE] = lambda _: selective_figure(results["selective"])
    if results.get("confusion"):
        charts[CONFUSION] = partial(confusion_figure, results)
    return charts


def report_markdown(results: Mapping[str, Any], images: Sequence[np.ndarray] = ()) -> str:
    """The text of report.md."""
    sections = report_sections(results, images, {})
    return markdown_page(_title(results), _subtitle(results), sections, findings(results))


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
        if results[key] is not None
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
        *([Section("Confusion between groups", _group_confusion(results))] if len(_present(results)) > 1 else []),
        Section("Most confused classes", _confusion(results, elements)),
        Section("Predicted class distribution", [predictions, _prediction_sentence(results)]),
        Section("Calibration", [reliability, *_calibration_sentence(results)]),
    ]
    if "selective" in results:
        picture = Picture(SELECTIVE_CAPTION, SELECTIVE, elements.get(SELECTIVE, ""))
        blocks: list[Block] = [picture, selective_sentence(results), selective_table(results)]
        sections.append(Section("Accuracy over coverage", blocks))
    if len(images):
        thumbnails = Picture("Most confident mistakes", HARDEST, _thumbnails(results, images))
        files = InMarkdown([_mistakes_table(results)])
        sections.append(Section("Most confident mistakes", [_mistakes_sentence(results), thumbnails, files]))
    if "reconstructions" in results:
        picture = Picture("Masked reconstructions", RECONSTRUCTIONS, elements.get(RECONSTRUCTIONS, ""))
        sections.append(Section("Masked reconstructions", [picture, results["reconstructions"]]))
    if "test_prior" in results:
        rows = [(name, percent(of["accuracy"]), percent(of["shifted"])) for name, of in results["test_prior"].items()]
        table = Table(("Test distribution", "Uncorrected", "Prior-corrected"), rows, "lrr")
        sections.append(Section("Other test distributions", [PRIOR_SENTENCE, table]))
    sections.append(Section("Per-class results", [CLASS_SENTENCE, class_table(results)]))
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
    """Which groups the table leaves out, what the intervals are, and which test-time ensembling was used."""
    sentences = (*empty_group_sentences(results), interval_sentence(results), tta_sentence(results.get("tta")))
    return [sentence for sentence in sentences if sentence]


def _accuracy_table(results: Mapping[str, Any]) -> Table:
    words, measured = describe_groups(results["groups"]["definition"]), _classes_measured(results)
    shown = {name: percent_range(results[name], interval_of(results, name)) for name in ("accuracy", *GROUP_NAMES)}
    rows: list[tuple] = [("All images", Strong(shown["accuracy"]), measured["all"], "")]
    rows += [
        (f"{name}-shot".capitalize(), shown[name], measured[name], words[name])
        for name in GROUP_NAMES
        if results[name] is not None
    ]
    return Table(("", "Accuracy (%)", "Classes", "Definition"), rows, "lrrl")


def empty_group_sentences(results: Mapping[str, Any]) -> list[str]:
    """Which groups are in no table, because they have no classes or no test images."""
    words, members = describe_groups(results["groups"]["definition"]), _group_sizes(results)
    sentences = []
    if empty := [f"{name}-shot ({words[name]})" for name in GROUP_NAMES if not members[name]]:
        sentences.append(
            f"No class is {' or '.join(empty)}. With --group_by rank, livt finetune takes the largest and the smallest "
            "classes instead, so that no group is empty."
        )
    if untested := [f"{name}-shot ({words[name]})" for name in GROUP_NAMES if members[name] and results[name] is None]:
        sentences.append(f"No class that is {' or '.join(untested)} has test images.")
    return sentences


def _group_sizes(results: Mapping[str, Any]) -> dict[str, int]:
    groups = ClassPrior(results["class_counts"]).groups(**results["groups"]["definition"])
    return {name: len(labels) for name, labels in groups.items()}


def _present(results: Mapping[str, Any]) -> list[str]:
    """The groups that have classes."""
    sizes = _group_sizes(results)
    return [name for name in GROUP_NAMES if sizes[name]]


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
            "undefined: the class distribution of the test set is that of the training set, up to chance"
            if results["pdc"] is None
            else "0: predicted class distribution equals the test set's; 1: as far from it as the training set's",
        ),
    ]
    return Table(("Other metrics", "", ""), rows, "lrl")


def _group_confusion(results: Mapping[str, Any]) -> list[str | Table]:
    rows = []
    present = _present(results)
    for true in (name for name in present if results[name] is not None):
        counts = [results["group_confusion"][true][predicted] for predicted in present]
        shares = [Share(100 * count / sum(counts)) for count in counts]
        rows.append((f"{true}-shot", *shares, f"{sum(counts):,}"))
    header = ("True group", *(f"→ {group}" for group in present), "Images")
    table = Table(header, rows, "l" + "r" * (len(present) + 1), "matrix")
    return [table, "Rows: group of the true class; columns: group of the predicted class, in percent of the row."]


def _confusion(results: Mapping[str, Any], elements: Mapping[str, str]) -> list[Block]:
    """The most confused classes, and the whole matrix where the results have it."""
    blocks: list[Block] = [_confused_pairs(results)]
    if results.get("confusion"):
        blocks += [
            Picture(CONFUSION_CAPTION, CONFUSION, elements.get(CONFUSION, "")),
            f"Rows: true class; columns: predicted class, in percent of the row. {LARGEST_FIRST} {CONFUSION_CSV} has "
            "the numbers of images.",
        ]
    return blocks


def _confused_pairs(results: Mapping[str, Any]) -> str | Table:
    if not results["confused_pairs"]:
        return "No image was misclassified."
    rows = [
        (pair["true"], pair["predicted"], f"{pair['images']:,}", percent(pair["share"]))
        for pair in results["confused_pairs"]
    ]
    return Table(("Class", "Predicted as", "Images", "Of the class (%)"), rows, "llrr")


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
    loss = f"with loss {loss_words(results['loss'], results['tau'])}"
    if results["pretrained"]:
        return f"Trained {loss}, initialized from {public_name(results['pretrained'])}.{adjusted}"
    return f"Trained from scratch {loss}.{adjusted}"


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
    if not never:
        return f"All {counted(len(tested), 'tested class')} were predicted at least once."
    return f"Never predicted: {never:,} of {counted(len(tested), 'tested class')}."


def _calibration_sentence(results: Mapping[str, Any]) -> list[str]:
    step = calibration_step(results)
    return [f"To calibrate: {step}."] if step else []


def _mistakes_sentence(results: Mapping[str, Any]) -> str:
    group = results["hardest_images"][0]["group"]
    return (
        f"High-confidence errors on {group}-shot classes only: typical confusions of rare classes, and possible label "
        "errors. livt dataset check --model lists doubtful labels of all classes."
    )


def _mistakes_table(results: Mapping[str, Any]) -> Table:
    """The files of the pictures, in their order."""
    header = ("Image", "Class", "Predicted as", "Confidence (%)")
    rows = [
        (_image_name(entry), entry["true"], entry["predicted"], percent(entry["confidence"]))
        for entry in results["hardest_images"]
    ]
    return Table(header, rows, "lllr")


def _image_name(entry: Mapping[str, Any]) -> str:
    """The file of an image, or its place in the split where it has none, or in results of earlier versions."""
    return entry.get("path") or f"image {entry['index']}"


def _thumbnails(results: Mapping[str, Any], images: Sequence[np.ndarray]) -> str:
    figures = (
        thumbnail(
            image,
            _image_name(entry),
            entry["true"],
            f"predicted as {entry['predicted']}",
            f"{entry['confidence']:.0f} % confidence",
            _image_name(entry),
        )
        for entry, image in zip(results["hardest_images"], images, strict=True)
    )
    return f'<div class="thumbnails">{"".join(figures)}</div>'
