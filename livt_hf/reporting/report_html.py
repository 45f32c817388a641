"""report.html: the evaluation as one page that needs no other file and no network, in light and dark.

Everything that comes from data is escaped, and the page's own content security policy allows nothing but its one script
(by its hash), its style, and embedded pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import PIL.Image

from ..metrics import describe_groups
from ..prior import GROUP_NAMES, ClassPrior
from .blocks import data_uri as _data_uri
from .blocks import escape_html, percent
from .blocks import html_table as _table
from .blocks import paragraph as _paragraph
from .provenance import public_name

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
THUMBNAIL = 160  # pixels of its longer side
GROUP_SENTENCE = (
    "A group's accuracy is the mean of the accuracies of its classes, each class counting the same; a dash means that "
    "no class of the group was tested."
)
PRIOR_SENTENCE = (
    "Accuracy in percent if the classes of the test images had these shares: forward is long-tailed as the training "
    "images are, backward the other way round; the number is largest over smallest class (Hong et al., CVPR 2021). "
    "Each class's accuracy counts with its share, so no image is drawn or left out. Shifted: the logits moved from the "
    "shares that the model assumes to these, which takes that they are known."
)


def report_html(
    results: Mapping[str, Any],
    charts: Mapping[str, str],
    images: Sequence[np.ndarray],
    reconstructions: bytes | None = None,
) -> str:
    """The page.

    Args:
        results: what results.json holds.
        charts: SVG elements: ``class_frequency``, ``reliability``, ``predictions``.
        images: the hardest images, uint8 (H, W, 3), in the order of ``results["hardest_images"]``; may be empty.
        reconstructions: a PNG, if ``results`` has a caption for it.
    """
    split = f" ({results['split']} split)" if results.get("split") else ""
    sections = [
        ("Accuracy along the long tail", charts["class_frequency"]),
        ("What is taken for what", _confusions(results)),
        ("What is predicted", charts["predictions"] + _paragraph(_prediction_sentence(results))),
        ("Calibration", charts["reliability"]),
    ]
    if images:
        sections.append(("Hardest images", _paragraph(hardest_sentence(results)) + _thumbnails(results, images)))
    if reconstructions is not None:
        picture = f'<img class="wide" alt="Masked reconstructions" src="{_data_uri(reconstructions)}">'
        sections.append(("Masked reconstructions", picture + _paragraph(results["reconstructions"])))
    if "test_prior" in results:
        rows = [
            (name, percent(values["accuracy"]), percent(values["shifted"]))
            for name, values in results["test_prior"].items()
        ]
        sections.append(
            ("Other test distributions", _table(("Test distribution", "As it is (%)", "Shifted (%)"), rows))
        )
    sections += [("Every class", _class_table(results)), ("How it was measured", _measurement(results))]
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template[template.index("<script>") + len("<script>") : template.index("</script>")]
    return Template(template).substitute(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=escape_html(public_name(results["model"])),
        subtitle=escape_html(
            f"{results['images']:,} images of {public_name(results['dataset'])}{split}. {training_sentence(results)}"
        ),
        tiles="".join(
            f'<div class="tile {group}"><b>{percent(results[key])}</b><span>{name}</span></div>'
            for key, name, group in (
                ("accuracy", "accuracy (%)", "all"),
                *((group, f"{group}-shot (%)", group) for group in GROUP_NAMES),
                ("ece", "ECE (%)", "all"),
                ("mce", "MCE (%)", "all"),
            )
        ),
        groups=_group_table(results) + _paragraph(GROUP_SENTENCE),
        figures=_table(("Further figures", "", ""), further_figures(results), numbers=(1,)),
        sections="".join(f"<section><h2>{escape_html(name)}</h2>{body}</section>" for name, body in sections),
    )


def further_figures(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it means) of the figures beside accuracy, groups and calibration."""
    accuracies = [value for value in results["per_class"].values() if value is not None]
    zero = sum(value == 0 for value in accuracies)
    pdc = "–" if results["pdc"] is None else f"{results['pdc']:.3f}"
    return [
        ("Top-5 accuracy (%)", percent(results["top5"]), "given where there are more than five classes"),
        ("Macro accuracy (%)", percent(results["macro_accuracy"]), "mean over the tested classes"),
        ("Harmonic mean (%)", percent(results["harmonic_mean"]), "over the tested classes; 0 if one of them is"),
        ("Worst class (%)", percent(results["worst_class"]), f"{zero:,} of {len(accuracies):,} classes at 0"),
        ("PDC", pdc, "0: classes are predicted as often as they occur; 1: as far off as the training frequencies"),
    ]


def group_shares(results: Mapping[str, Any]) -> list[tuple[str, list[float | None], int]]:
    """(group, percent of its test images predicted as each group, its test images) for every group."""
    rows = []
    for true in GROUP_NAMES:
        counts = [results["group_confusion"][true][predicted] for predicted in GROUP_NAMES]
        total = sum(counts)
        rows.append((true, [100 * count / total if total else None for count in counts], total))
    return rows


def hardest_sentence(results: Mapping[str, Any]) -> str:
    """What the thumbnails show."""
    group = results["hardest_images"][0]["group"]
    return (
        f"The most confident mistakes on {group}-shot classes: what rare classes are taken for, and labels that may be "
        "wrong."
    )


def training_sentence(results: Mapping[str, Any]) -> str:
    """How the model was trained, and what was folded into it afterwards, as far as its config tells."""
    adjusted = _adjustment_sentence(results.get("adjustment"))
    if results["loss"] is None:
        return f"The checkpoint does not say how it was trained.{adjusted}"
    start = f"initialized from {public_name(results['pretrained'])}" if results["pretrained"] else "from scratch"
    return f"Trained {start} with the loss {results['loss']}, tau {results['tau']:g}.{adjusted}"


def _adjustment_sentence(adjustment: Mapping[str, Any] | None) -> str:
    if not adjustment:
        return ""
    target = adjustment["target_prior"]
    words = [f"target prior {target if isinstance(target, str) else 'from a file'}"] if target is not None else []
    words += [f"tau-norm {adjustment['tau_norm']:g}"] if adjustment["tau_norm"] is not None else []
    words += [f"temperature {adjustment['temperature']:.4g}"] if adjustment["temperature"] != 1.0 else []
    return f" Adjusted after the training: {', '.join(words)}."


def _prediction_sentence(results: Mapping[str, Any]) -> str:
    tested = [name for name, images in results["test_counts"].items() if images]
    never = sum(results["predicted_counts"][name] == 0 for name in tested)
    return f"{never:,} of {len(tested):,} tested classes were never predicted."


def _group_table(results: Mapping[str, Any]) -> str:
    words, sizes = describe_groups(results["groups"]["definition"]), results["groups"]["sizes"]
    rows = [
        (f"{name}-shot".capitalize(), percent(results[name]), f"{sizes[name]:,}", words[name]) for name in GROUP_NAMES
    ]
    return _table(("Group", "Accuracy (%)", "Classes", "Definition"), rows, numbers=(1, 2))


def _confusions(results: Mapping[str, Any]) -> str:
    head = "".join(f'<th class="number">{group}-shot</th>' for group in GROUP_NAMES)
    body = ""
    for true, shares, images in group_shares(results):
        cells = "".join(
            f'<td class="number" style="--share:{0 if share is None else share:.0f}%">{percent(share)}</td>'
            for share in shares
        )
        body += f'<tr><th>{true}-shot class</th>{cells}<td class="number">{images:,}</td></tr>'
    matrix = (
        f'<table class="matrix"><thead><tr><th>predicted as (% of the row)</th>{head}<th class="number">images</th>'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )
    if not results["confused_pairs"]:
        return matrix + _paragraph("No image was classified wrongly.")
    rows = [
        (pair["true"], pair["predicted"], f"{pair['images']:,}", percent(pair["share"]))
        for pair in results["confused_pairs"]
    ]
    pairs = _table(("Class", "Taken for", "Images", "Of its images (%)"), rows, numbers=(2, 3))
    return f"{matrix}<h3>Most confused pairs</h3>{pairs}"


def _class_table(results: Mapping[str, Any]) -> str:
    """Every class, the one with most training images first; a click on a header sorts."""
    prior = ClassPrior(results["class_counts"])
    members = prior.groups(**results["groups"]["definition"])
    group_of = {int(label): group for group, labels in members.items() for label in labels}
    rows = [
        (
            prior.names[label],
            f"{prior.counts[label]:,}",
            group_of[label],
            f"{results['test_counts'][prior.names[label]]:,}",
            f"{results['predicted_counts'][prior.names[label]]:,}",
            percent(results["per_class"][prior.names[label]]),
        )
        for label in sorted(range(len(prior)), key=lambda label: -prior.counts[label])
    ]
    header = ("Class", "Training images", "Group", "Test images", "Predicted", "Accuracy (%)")
    table = _table(header, rows, numbers=(1, 3, 4, 5), kind="sortable")
    return _paragraph("A click on a column sorts by it.") + f'<div class="scroll">{table}</div>'


def _measurement(results: Mapping[str, Any]) -> str:
    machine = results["hardware"]
    device = "CPU" if machine["device"] == "cpu" else machine["device"]
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"<pre>{html.escape(results['command'])}</pre>" + _paragraph(
        f"Run on: {device} ({machine['cpu']}, {machine['cores']} cores). Versions: {libraries}."
    )


def _thumbnails(results: Mapping[str, Any], images: Sequence[np.ndarray]) -> str:
    figures = []
    for entry, image in zip(results["hardest_images"], images, strict=True):
        small = max(image.shape[:2]) <= THUMBNAIL // 2
        figures.append(
            f'<figure><img class="{"pixels" if small else "photo"}" alt="image {entry["index"]}" '
            f'src="{_data_uri(_thumbnail(image, small), "png" if small else "jpeg")}">'
            f"<figcaption><b>{escape_html(entry['true'])}</b><br>taken for {escape_html(entry['predicted'])}<br>"
            f"{entry['confidence']:.0f} % sure, image {entry['index']}</figcaption></figure>"
        )
    return f'<div class="thumbnails">{"".join(figures)}</div>'


def _thumbnail(image: np.ndarray, small: bool) -> bytes:
    picture = PIL.Image.fromarray(image)
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG")
    else:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
