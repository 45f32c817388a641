"""`livt pretrain` and `livt finetune` as a whole, reading images, relative to the training step alone."""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.reporting.provenance import available_cores
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.run import MetricsLog

from .images import is_small, write_images
from .timing import Step, take_turns

# On a GPU the first window is long enough to use up what the workers load while the run starts.
GPU_WINDOW, GPU_WINDOWS = 64, 3
SMALL_IMAGES = 12_406  # as in CIFAR-10-LT


def print_end_to_end(
    step: Step, args: argparse.Namespace, device: str, stage: str = "pretrain"
) -> dict[str, float | int]:
    """Speed of a stage's command relative to our step alone, measured in turns."""
    window, windows, repeats = (GPU_WINDOW, GPU_WINDOWS, 1) if device == "cuda" else (args.steps, 2, args.repeats)
    workers = max(available_cores() - 2, 1) if device == "cuda" else 1
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        count = 4 * args.batch_size
        count = max(count, SMALL_IMAGES) if is_small(args.image_size) and device == "cuda" else count
        write_images(Path(folder) / "images" / "train", count, args.image_size)
        for repeat in range(repeats):
            turn = argparse.Namespace(**{**vars(args), "repeats": 1})
            alone.append(take_turns({"step": step}, turn, device)["step"].images_per_second)
            options = {
                "dataset": str(Path(folder) / "images"),
                "model_size": args.model_size,
                "image_size": args.image_size,
                "patch_size": args.patch_size,
                "batch_size": args.batch_size,
                "max_steps": windows * window,
                "logging_steps": window,
                "mixed_precision": "bf16" if args.dtype == "bf16" else "no",
                "num_workers": workers,
                "output_dir": str(Path(folder) / f"run-{repeat}"),
            }
            whole.append(command_speed(stage, options))
    speed = statistics.median(whole)
    ratio = statistics.median(run / step for run, step in zip(whole, alone, strict=True))
    print(f"livt {stage:<11}{speed:8.1f} images/s, {ratio:.0%} of the step alone, {workers} workers")
    return {"images_per_second": speed, "share_of_the_step": ratio, "workers": workers}


def command_speed(stage: str, options: dict[str, Any]) -> float:
    """Images per second of a run from the first line of its log, when it has warmed up, to the last."""
    silent = contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO())
    with silent[0], silent[1], logged_times() as times:
        if stage == "pretrain":
            pretrain(PretrainArguments(**options))
        else:
            finetune(FinetuneArguments(**options), {"disable_tqdm": True})
    (first_step, start), (last_step, end) = times[0], times[-1]
    return (last_step - first_step) * options["batch_size"] / (end - start)


@contextlib.contextmanager
def logged_times() -> Iterator[list[tuple[int, float]]]:
    """Step and time of each line with a loss that a run logs; the device has then finished these steps."""
    times: list[tuple[int, float]] = []
    write = MetricsLog.write

    def timed(log: MetricsLog, values: dict[str, Any]) -> None:
        if "loss" in values:
            times.append((values["step"], time.perf_counter()))
        write(log, values)

    with patch.object(MetricsLog, "write", timed):
        yield times
