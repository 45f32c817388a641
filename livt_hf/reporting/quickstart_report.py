"""The report of `livt quickstart`: its table, the reconstructions, and where the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..files import write_text
from ..losses import LOSS_TITLES, SHORT_NAMES
from .blocks import Picture, Section, data_uri
from .chart_style import write_chart
from .comparison_charts import quickstart_figure
from .comparison_report import data_sentence, groups_sentence
from .comparison_table import comparison_block, summarize
from .pages import html_page, markdown_page
from .provenance import measurement_blocks


def write_quickstart(
    output_dir: Path, rows: Sequence[Mapping[str, Any]], published: Mapping[str, Any], caption: str
) -> None:
    """Write comparison.png, report.md and report.html, beside reconstructions.png and the folder livt-digits.

    Args:
        rows: results of the runs, each with "pretraining".
        published: results of the run whose model is livt-digits.
        caption: of the reconstructions.
    """
    chart = write_chart(partial(quickstart_figure, rows), output_dir / "comparison.png")
    losses = dict.fromkeys(row["loss"] for row in rows)
    names = "; ".join(f"{SHORT_NAMES[loss]}: {LOSS_TITLES[loss].split(' (')[0]}" for loss in losses)
    uri = data_uri((output_dir / "reconstructions.png").read_bytes())
    image = f'<div class="chart"><img alt="Original, masked and reconstructed digits" src="{uri}"></div>'
    sections = [
        Section(
            "Results",
            [
                Picture("Accuracy of each run by shot group", "comparison.png", chart),
                f"{data_sentence(published)} Seed {published['seed']}.",
                comparison_block(summarize(rows)),
                f"{names}. {groups_sentence(published)}",
            ],
        ),
        Section(
            "Masked reconstructions",
            [caption, Picture("Original, masked and reconstructed digits", "reconstructions.png", image)],
        ),
        Section(
            "The published model",
            [
                "The folder livt-digits contains the Bal-BCE model with the pretrained encoder and its model card; its "
                "report.html lists every class."
            ],
        ),
        Section("Evaluation setup", measurement_blocks(rows[0])),
    ]
    title, subtitle = "LiVT on long-tailed digits", "scikit-learn's digits, made long-tailed: one model per loss."
    write_text(output_dir / "report.md", markdown_page(title, subtitle, sections))
    write_text(output_dir / "report.html", html_page(title, subtitle, [], sections))
