"""results.json and report.md with its pictures, all from the one dict that `livt_hf.evaluation` makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import write_text
from .metrics import describe_groups
from .plots import plot_class_frequency, plot_reliability
from .prior import GROUP_NAMES, ClassPrior


def write_report(results: Mapping[str, Any], output_dir: str | Path, sections: Mapping[str, str] | None = None) -> None:
    """Write results.json, report.md, class_frequency.png and reliability.png.

    Args:
        results: what `evaluate_model` returned.
        output_dir: folder, made if it does not exist.
        sections: further parts of the report, ``{heading: Markdown}``.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    definition = results["groups"]["definition"]
    plot_class_frequency(results["class_counts"], results["per_class"], definition, folder / "class_frequency.png")
    plot_reliability(results["reliability"], results["ece"], folder / "reliability.png")
    write_text(folder / "report.md", report_markdown(results, sections or {}))
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def report_markdown(results: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """The text of report.md."""
    parts = [
        f"# Evaluation of {escape_markdown(results['model'])}",
        f"{results['images']:,} images of {_data_name(results)}. {training_sentence(results)}",
        accuracy_table(results),
        "A group's accuracy is the mean of the accuracies of its classes, each class counting the same; a dash means "
        f"that no class of the group was tested.{_counts_sentence(results)}",
        f"Expected calibration error (ECE): **{percent(results['ece'])} %**, maximum calibration error (MCE): "
        f"**{percent(results['mce'])} %**, over {len(results['reliability'])} bins of equal width.",
        "## Accuracy along the long tail",
        "![Training images and accuracy of each class](class_frequency.png)",
        "## Calibration",
        "![Reliability diagram](reliability.png)",
        *(f"## {escape_markdown(heading)}\n\n{text}" for heading, text in sections.items()),
        "## Every class",
        _class_table(results),
        "## How it was measured",
        measurement(results),
    ]
    return "\n\n".join(parts) + "\n"


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
            percent(results["per_class"][prior.names[label]]),
        )
        for label in labels
    )
    return markdown_table(("Class", "Training images", "Group", "Accuracy (%)"), rows, "lrlr")


def training_sentence(results: Mapping[str, Any]) -> str:
    """How the model was trained, as far as its config tells."""
    adjusted = _adjustment_sentence(results.get("adjustment"))
    if results["loss"] is None:
        return f"The checkpoint does not say how it was trained.{adjusted}"
    start = f"initialised from {escape_markdown(results['pretrained'])}" if results["pretrained"] else "from scratch"
    return f"Trained {start} with the loss {escape_markdown(results['loss'])}, tau {results['tau']:g}.{adjusted}"


def _adjustment_sentence(adjustment: Mapping[str, Any] | None) -> str:
    """What was folded into the classifier after its training."""
    if not adjustment:
        return ""
    target = adjustment["target_prior"]
    words = [f"target prior {target if isinstance(target, str) else 'from a file'}"] if target is not None else []
    words += [f"tau-norm {adjustment['tau_norm']:g}"] if adjustment["tau_norm"] is not None else []
    words += [f"temperature {adjustment['temperature']:.4g}"] if adjustment["temperature"] != 1.0 else []
    return f" Adjusted after the training: {escape_markdown(', '.join(words))}."


def prior_section(accuracies: Mapping[str, Mapping[str, float]]) -> str:
    """The table of `prior_accuracies`, and how it was made."""
    rows = [(name, percent(values["accuracy"]), percent(values["shifted"])) for name, values in accuracies.items()]
    return (
        "Accuracy in percent if the classes of the test images had these shares: forward is long-tailed as the "
        "training images are, backward the other way round; the number is largest over smallest class (Hong et al., "
        "CVPR 2021). Each class's accuracy counts with its share, so no image is drawn or left out. Shifted: the "
        "logits moved from the shares that the model assumes to these, which takes that they are known.\n\n"
        + markdown_table(("Test distribution", "As it is", "Shifted"), rows, "lrr")
    )


def measurement(results: Mapping[str, Any]) -> str:
    """Command, machine and versions."""
    machine = results["hardware"]
    device = "CPU" if machine["device"] == "cpu" else escape_markdown(machine["device"])
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{code_block(results['command'])}\n\nRun on: {device} ({escape_markdown(machine['cpu'])}, {machine['cores']} "
        f"cores).\nVersions: {libraries}."
    )


def _data_name(results: Mapping[str, Any]) -> str:
    split = f" ({escape_markdown(results['split'])} split)" if results.get("split") else ""
    return escape_markdown(results["dataset"]) + split


def _counts_sentence(results: Mapping[str, Any]) -> str:
    source = results.get("class_counts_from")
    return f" The checkpoint holds no class counts; they are those of the {escape_markdown(source)}." if source else ""


def percent(value: float | None) -> str:
    """One decimal; a dash for what could not be measured."""
    return "–" if value is None else f"{value:.1f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], alignment: str) -> str:
    """A GitHub table. ``alignment``: "l" or "r" for each column. Cells must be escaped already."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


# What can start markup, a table cell, HTML or a link; an underscore only at the edge of a word.
_MARKUP = re.compile(r"[|`<>&*\[\]~$\\#!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|@")
# Line breaks, control characters, and marks that reverse the direction of the text around them.
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def escape_markdown(text: Any) -> str:
    """Text such as a class name, harmless in a line or table cell of Markdown: it shows, and does nothing else."""
    line = _INVISIBLE.sub(" ", str(text)).strip()
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(character)};" for character in match.group()), line)


def code_block(text: str) -> str:
    """A fenced block that the text cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"
