"""`livt quickstart`: the whole method in minutes on a CPU, on scikit-learn's digits made long-tailed.

One masked pretraining, then fine-tuning from it with each loss and once without it: the paper's comparison of losses
(LiVT Table 7) and of pretraining, small. All values are those of the recipes named `digits`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config.arguments import FinetuneArguments, PretrainArguments
from ..config.parsing import parse_arguments
from ..data import load_long_tailed
from ..evaluation.evaluate import draw_reconstructions, mistaken_images
from ..files import write_text
from ..losses import LOSS_TITLES, SHORT_NAMES
from ..metrics import describe_groups
from ..reporting.card import write_model_card
from ..reporting.comparison_charts import plot_comparison
from ..reporting.comparison_report import comparison_table, summarize
from ..reporting.evaluation_report import write_report
from ..reporting.provenance import measurement
from .finetuning import finetune
from .pretraining import pretrain

logger = logging.getLogger(__name__)

RUNS = (("ce", True), ("bce", True), ("bal_ce", True), ("bal_bce", True), ("bal_bce", False))
PUBLISHED = ("bal_bce", True)  # the run that becomes OUT/livt-digits
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def quickstart(output_dir: Path) -> list[dict[str, Any]] | None:
    """Run everything, print the table, and write report, pictures and the model ``livt-digits`` into a folder.

    Interrupted, the same call goes on where it stopped.

    Returns:
        The results of the runs, or None if a signal stopped it.

    Raises:
        ValueError: the folder holds a finished quickstart, or something else.
    """
    if output_dir.is_file():
        raise ValueError(f"output_dir: {str(output_dir)!r} is a file; name a new folder")
    if (output_dir / "results.json").exists():
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds a finished quickstart; name a new folder, or delete it"
        )
    if output_dir.exists() and not (output_dir / "runs").exists() and any(output_dir.iterdir()):
        raise ValueError(f"output_dir: {str(output_dir)!r} is not empty; name a new folder")
    # Tensors this small gain nothing from a second thread, which the data worker needs.
    torch.set_num_threads(1)
    mae_dir = output_dir / "runs" / "pretrain"
    logger.info(f"1/{len(RUNS) + 1} masked pretraining")
    args, _ = parse_arguments(PretrainArguments, ["--recipe", "digits", "--output_dir", str(mae_dir)])
    if pretrain(args) is None:
        return None
    rows = []
    for number, (loss, pretrained) in enumerate(RUNS, start=2):
        logger.info(f"{number}/{len(RUNS) + 1} fine-tuning: {run_name(loss, pretrained)}")
        results = finetune(*_finetune_arguments(output_dir, loss, mae_dir if pretrained else None))
        if results is None:
            return None
        rows.append(results)
    table = comparison_table(summarize({**row, "pretraining": "MAE" if row["pretrained"] else "none"} for row in rows))
    _write_results(output_dir, mae_dir, rows, table)
    logger.info(f"\n{table}\n")
    logger.info(f"report: {output_dir}/report.md   model: {output_dir}/livt-digits")
    return rows


def _finetune_arguments(output_dir: Path, loss: str, mae_dir: Path | None) -> tuple[FinetuneArguments, dict[str, Any]]:
    run_dir = output_dir / "runs" / (loss if mae_dir else f"{loss}_from_scratch")
    start = "none" if mae_dir is None else str(mae_dir)
    options = ["--recipe", "digits", "--output_dir", str(run_dir), "--loss", loss, "--pretrained", start]
    return parse_arguments(FinetuneArguments, options)


def run_name(loss: str, pretrained: bool) -> str:
    return SHORT_NAMES[loss] + ("" if pretrained else ", no pretraining")


def _write_results(output_dir: Path, mae_dir: Path, rows: Sequence[dict[str, Any]], table: str) -> None:
    """Pictures, report and the folder of the published model; results.json last, as the sign that all is there."""
    plot_comparison(
        [{**row, "name": run_name(row["loss"], bool(row["pretrained"])).replace(", ", "\n")} for row in rows],
        output_dir / "comparison.png",
    )
    published = rows[RUNS.index(PUBLISHED)]
    test = load_long_tailed("digits")["test"]
    caption = draw_reconstructions(mae_dir, test, published["class_counts"], output_dir / "reconstructions.png")
    model_dir = output_dir / "livt-digits"
    model_dir.mkdir(exist_ok=True)
    for name in MODEL_FILES:
        shutil.copy2(output_dir / "runs" / PUBLISHED[0] / name, model_dir / name)
    comparison = f"{table}\n\nOne seed ({published['seed']}); the same recipe for every loss."
    write_report(published, model_dir, mistaken_images(published, test))
    write_model_card(model_dir, published, sections={"Compared with other losses": comparison})
    write_text(output_dir / "report.md", _report(rows, table, published, caption))
    write_text(output_dir / "results.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def _report(rows: Sequence[Mapping[str, Any]], table: str, published: Mapping[str, Any], caption: str) -> str:
    counts = published["class_counts"]
    groups = "; ".join(f"{name}: {words}" for name, words in describe_groups(published["groups"]["definition"]).items())
    losses = "; ".join(
        f"{SHORT_NAMES[loss]} is {LOSS_TITLES[loss].split(' (')[0]}"
        for loss in dict.fromkeys(row["loss"] for row in rows)
    )
    parts = [
        "# LiVT on long-tailed digits",
        f"scikit-learn's digits: {sum(counts.values())} training images of {len(counts)} classes, the largest with "
        f"{max(counts.values())} and the smallest with {min(counts.values())}; {published['images']} test images, the "
        f"same number of each class. Accuracies and calibration errors in percent, seed {published['seed']}, best in "
        "bold.",
        table,
        f"{losses}. Groups: {groups}.",
        "![Accuracy of each run](comparison.png)",
        "## What the pretrained model sees",
        caption,
        "![Original, masked and reconstructed digits](reconstructions.png)",
        "## The published model",
        "[livt-digits](livt-digits/README.md) is the run with Bal-BCE from the pretrained encoder; "
        "[its report](livt-digits/report.md) shows every class.",
        "## How it was measured",
        measurement(rows[0]),
    ]
    return "\n\n".join(parts) + "\n"
