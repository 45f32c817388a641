"""A run in its output folder: lock, log, checkpoints and stop signal. `stage_run` adds what a stage needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..evaluation.knn import Watch
from ..files import METRICS_FILE, explain_failed_write, publish, write_text
from ..hub.background import BackgroundPusher
from .checkpoint import archive_later_checkpoints, find_resume_checkpoint, remove_old_checkpoints
from .lock import lock_folder
from .stopping import StoppableBatches, Stopped, StopSignal, explained_end

AGREE_EVERY = 10  # steps between synchronizations of the stop signal across processes


class Run:
    """Log, checkpoints, uploads and stop signal of a run.

    Every process has an instance and must call its methods at the same steps; the main one writes.

    Args:
        folder: output folder.
        pusher: uploads checkpoints and the final model; None on other than the main process or without uploads.
        save_total_limit: number of checkpoints to keep; None keeps all.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        is_main: bool = True,
        pusher: BackgroundPusher | None = None,
        save_total_limit: int | None = None,
    ):
        self.folder, self.is_main = Path(folder), is_main
        self.pusher, self.save_total_limit = pusher, save_total_limit
        self.record: dict[str, Any] = {}
        self.trained = False  # the model is saved in the folder
        self.interrupted: str | None = None  # the signal that stopped an evaluation
        self.stop_signal = StopSignal(self.saved)
        self._log: MetricsLog | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Context of the whole run: keeps other runs out of the folder, and says what is saved when it is interrupted.

        Raises:
            ValueError: another run uses the folder, or a loader's worker died.
        """
        with lock_folder(self.folder), explained_end(self.saved):
            yield

    def saved(self) -> str:
        """What of the run is safe, and what the same command does now."""
        if self.trained:
            return f"the trained model is saved in {self.folder}; the same command does what is left"
        checkpoint = find_resume_checkpoint(self.folder, "auto")[0]
        if checkpoint is None:
            return "nothing was saved yet; the same command starts again"
        return f"{checkpoint} is saved; the same command continues from it"

    def begin(self, step: int) -> None:
        """Before training starts at ``step``: truncate the log after it, archive later checkpoints."""
        if self.is_main:
            archive_later_checkpoints(self.folder, step)
            self._log = MetricsLog(self.folder, step)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self._log is not None:
            self._log.write(values)

    def stop_requested(self, accelerator: Accelerator, step: int) -> str | None:
        """The signal received by any process, if any; all processes get it at the same step."""
        self.stop_signal.step_ended()
        received = self.stop_signal.received
        if self.interrupted:
            received = self.interrupted
        elif accelerator.num_processes > 1:
            received = None if step % AGREE_EVERY else self._any_received(accelerator)
        if received is not None:
            self.stop_signal.saving()
        return received

    def _any_received(self, accelerator: Accelerator) -> str | None:
        received = self.stop_signal.received
        flag = torch.tensor([float(received is not None)], device=accelerator.device)
        return (received or "a signal") if accelerator.reduce(flag, "sum").item() else None

    @contextmanager
    def evaluation(self, accelerator: Accelerator) -> Iterator[Watch]:
        """Context of an evaluation during training, which a signal stops: its `Stopped` ends here.

        Of several processes, which wait for each other, all leave it out if one has got a signal before; during it, a
        signal that is not followed by the end of training within seconds ends the process.

        Yields:
            Wraps the batches of the evaluation.
        """
        signal, stoppable = self.stop_signal, True
        if accelerator.num_processes > 1:
            received = self._any_received(accelerator)
            stoppable = received is not None
            signal.received = signal.received or received
        with signal.evaluation():
            try:
                yield partial(StoppableBatches, signal=signal) if stoppable else iter
            except Stopped as stopped:
                self.interrupted = str(stopped)

    @contextmanager
    def checkpoint(self, step: int, accelerator: Accelerator, saves: bool | None = None) -> Iterator[Path]:
        """A hidden folder to write into, renamed to ``checkpoint-STEP`` once it is complete on disk.

        All processes must enter and get the same path.

        Args:
            saves: whether this process publishes the folder; default: the main one.
        """
        saves = self.is_main if saves is None else saves
        path = self.folder / f"checkpoint-{step}"
        staging = self.folder / ".staging" / path.name
        if saves:
            shutil.rmtree(staging.parent, ignore_errors=True)
            staging.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            with explain_failed_write(path):
                yield staging
                accelerator.wait_for_everyone()
                if saves:
                    publish(staging, path)
            if saves and self.pusher:
                self.pusher.push(path, f"step {step}")
            if saves and self.save_total_limit:
                remove_old_checkpoints(self.folder, self.save_total_limit)
        finally:
            if saves:
                shutil.rmtree(staging.parent, ignore_errors=True)
        accelerator.wait_for_everyone()


class MetricsLog:
    """OUTPUT/metrics.jsonl: one JSON object per logged step; on resume truncated after the resumed step."""

    def __init__(self, output_dir: Path, resumed_step: int = 0):
        output_dir.mkdir(parents=True, exist_ok=True)
        self.path = output_dir / METRICS_FILE
        if self.path.exists():
            write_text(self.path, "".join(f"{line}\n" for line in _lines_up_to(self.path, resumed_step)))

    def write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            logged_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash
        if logged_step <= step:
            yield line
