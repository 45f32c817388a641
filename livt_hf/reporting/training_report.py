"""Report of a training run without an evaluation: what was trained on which images, and how the loss fell."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..files import read_metrics, read_run, write_text
from .blocks import Block, Picture, Section, Table, data_uri
from .card import LOSS_CURVE, NOT_EVALUATED, RECONSTRUCTIONS, hyperparameters, loss_sentence
from .chart_style import write_chart
from .charts import loss_curve_figure
from .coverage import coverage_sentences
from .pages import html_page, markdown_page
from .provenance import measurement_blocks, public_name


def write_training_report(folder: str | Path, description: Mapping[str, Any], statement: str = NOT_EVALUATED) -> None:
    """Write report.md and report.html, and with a metrics.jsonl also loss_curve.png, into the folder of a run.

    Args:
        folder: folder of the run; metrics.jsonl, run.json and reconstructions.png are used if present.
        description: ``model``, ``dataset``, ``command``, ``hardware`` and ``versions`` as in results.json; of a
            classifier also ``class_counts`` and ``coverage``.
        statement: what the report says about the quality of the model.
    """
    folder = Path(folder)
    title = f"Training of {public_name(description['model'])}"
    subtitle = f"Trained on {public_name(description['dataset'])}. {statement}"
    sections = _sections(folder, description)
    write_text(folder / "report.md", markdown_page(title, subtitle, sections))
    write_text(folder / "report.html", html_page(title, subtitle, [], sections))


def _sections(folder: Path, description: Mapping[str, Any]) -> list[Section]:
    sections = []
    lines, run, reconstructions = read_metrics(folder), read_run(folder), folder / RECONSTRUCTIONS
    if sentence := loss_sentence(lines):
        chart = write_chart(partial(loss_curve_figure, lines), folder / LOSS_CURVE)
        sections.append(Section("Training loss", [sentence, Picture("Loss by epoch", LOSS_CURVE, chart)]))
    if reconstructions.is_file():
        source = data_uri(reconstructions.read_bytes())
        image = f'<div class="chart"><img alt="Masked reconstructions" src="{source}"></div>'
        sections.append(Section("Masked reconstructions", [Picture("Masked reconstructions", RECONSTRUCTIONS, image)]))
    if counts := description.get("class_counts"):
        by_size = sorted(counts.items(), key=lambda item: -item[1])
        table = Table(("Class", "Training images"), [(name, f"{count:,}") for name, count in by_size], "lr", "sortable")
        blocks: list[Block] = [*coverage_sentences(description.get("coverage")), table]
        sections.append(Section("Training images", blocks))
    if run is not None:
        sections.append(Section("Hyperparameters", [hyperparameters(run)]))
    return [*sections, Section("Training setup", measurement_blocks(description))]
