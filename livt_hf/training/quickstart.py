"""`livt quickstart`: the whole method in minutes on a CPU, on scikit-learn's digits made long-tailed.

One masked pretraining, then one fine-tuning per loss, and one without pretraining: the paper's comparison of losses
(LiVT Table 7) and of pretraining in miniature. All values are those of the recipes named `digits`.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config.arguments import FinetuneArguments, PretrainArguments
from ..config.parsing import parse_arguments
from ..data import load_long_tailed
from ..evaluation.evaluate import draw_reconstructions, mistaken_images
from ..files import PREDICTIONS_FILE, check_folder, is_new_folder, write_text
from ..losses import SHORT_NAMES
from ..reporting.card import write_model_card
from ..reporting.comparison_table import comparison_table, summarize
from ..reporting.evaluation_report import write_report
from ..reporting.quickstart_report import write_quickstart
from .finetuning import finetune
from .lock import lock_folder
from .pretraining import pretrain

logger = logging.getLogger(__name__)

RUNS = (("ce", True), ("bce", True), ("bal_ce", True), ("bal_bce", True), ("bal_bce", False))  # loss, pretrained?
PUBLISHED, MODEL = ("bal_bce", True), "livt-digits"  # a run, and the folder that its model is published in
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def quickstart(output_dir: Path) -> list[dict[str, Any]] | None:
    """Pretrain, fine-tune five times, log the table, and write report, charts and the model ``livt-digits``.

    After an interruption, the same call resumes.

    Returns:
        The results of the runs, or None if a signal stopped it.

    Raises:
        ValueError: the folder contains a finished quickstart, or other files.
    """
    check_folder(output_dir)
    with lock_folder(output_dir):
        _check_output_dir(output_dir)
        return _quickstart(output_dir)


def _quickstart(output_dir: Path) -> list[dict[str, Any]] | None:
    # Tensors this small gain nothing from a second thread, which the data worker needs.
    torch.set_num_threads(1)
    runs_dir = output_dir / "runs"
    mae_dir = runs_dir / "pretrain"
    logger.info(f"1/{len(RUNS) + 1} masked pretraining")
    args, _ = parse_arguments(PretrainArguments, ["--recipe", "digits", "--output_dir", str(mae_dir)])
    if pretrain(args) is None:
        return None
    rows = []
    for number, (loss, pretrained) in enumerate(RUNS, start=2):
        logger.info(f"{number}/{len(RUNS) + 1} fine-tuning: {run_name(loss, pretrained)}")
        run_dir = runs_dir / (loss if pretrained else f"{loss}_from_scratch")
        options = ["--recipe", "digits", "--loss", loss, "--output_dir", str(run_dir)]
        options += ["--pretrained", str(mae_dir) if pretrained else "none"]
        results = finetune(*parse_arguments(FinetuneArguments, options))
        if results is None:
            return None
        rows.append(results)
    table = _write_results(output_dir, rows)
    logger.info(f"\n{table}\n")
    logger.info(closing_words(output_dir))
    return rows


def closing_words(output_dir: Path) -> str:
    """What there is to look at now, and the commands that one would try next."""
    model, mae = (shlex.quote(str(output_dir / name)) for name in (MODEL, "runs/pretrain"))
    return (
        f"comparison of the losses: {output_dir}/report.html\n"
        f"model trained with {SHORT_NAMES[PUBLISHED[0]]}: {output_dir}/{MODEL}, its report: "
        f"{output_dir}/{MODEL}/report.html\n"
        f"next: livt evaluate --model {model} --dataset digits --mae {mae}\n"
        f"      livt predict --model {model} IMAGE"
    )


def _check_output_dir(output_dir: Path) -> None:
    """ValueError unless a quickstart can begin or resume in the folder."""
    if (output_dir / "results.json").exists():
        raise ValueError(
            f"output_dir: {str(output_dir)!r} contains a finished quickstart; name a new folder, or delete it"
        )
    if not (output_dir / "runs").exists() and not is_new_folder(output_dir):
        raise ValueError(f"output_dir: {str(output_dir)!r} is not empty; name a new folder")


def run_name(loss: str, pretrained: bool) -> str:
    """Name of a run in the log and in the chart."""
    return SHORT_NAMES[loss] + ("" if pretrained else ", no pretraining")


def _write_results(output_dir: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write charts, report and the published model, then results.json, which marks them complete; returns the table."""
    compared = [{**row, "pretraining": "MAE" if row["pretrained"] else "none"} for row in rows]
    table = comparison_table(summarize(compared))
    published = {**rows[RUNS.index(PUBLISHED)], "model": MODEL}
    test = load_long_tailed("digits")["test"]
    mae_dir = output_dir / "runs" / "pretrain"
    caption = draw_reconstructions(mae_dir, test, published["class_counts"], output_dir / "reconstructions.png")
    model_dir = output_dir / MODEL
    model_dir.mkdir(exist_ok=True)
    trained = output_dir / "runs" / PUBLISHED[0]
    for name in (*MODEL_FILES, *(name for name in (PREDICTIONS_FILE,) if (trained / name).exists())):
        shutil.copy2(trained / name, model_dir / name)
    write_report(published, model_dir, mistaken_images(published, test))
    comparison = f"{table}\n\nOne seed ({published['seed']}); the same recipe for every loss."
    write_model_card(model_dir, published, sections={"Compared with other losses": comparison})
    write_quickstart(output_dir, compared, published, caption)
    write_text(output_dir / "results.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return table
