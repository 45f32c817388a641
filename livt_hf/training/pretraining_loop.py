"""The training loop of masked pretraining, on Accelerate: optimizer steps, log and checkpoints.

The data of a step is a function of seed and step only (see `data/loader.py`), and checkpoints contain unsharded tensors
by name. So a run can be interrupted at any point and resumed, also with another number of processes at the same global
batch size or on another engine (one device, DDP, FSDP2).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method
from tqdm.auto import tqdm

from ..data import on_device
from ..data.batch_ops import standardize, statistics
from ..files import read_metrics, write_text
from ..models.compilation import compile_if_asked
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from ..optimization import Schedule, adamw, parameter_groups
from .checkpoint import (
    FULL_STATE_DICT,
    STATE_FILE,
    load_optimizer,
    load_tensors,
    load_weights,
    random_state,
    set_random_state,
    set_schedule,
)
from .loss_check import LossCheck
from .monitor import Monitor
from .record import read_checkpoint_record
from .run import Run


class PretrainingLoop:
    """The training loop and its state: step, weights, optimizer, schedule, scaler, sum of losses.

    Args:
        model: with its initial weights.
        checkpoint: to resume from; replaces these weights.
        accumulation_steps: micro-batches per optimizer step.
        save_every, logging_steps: intervals in optimizer steps.
        compile: compile the blocks and the normalization (`compile_if_asked`).
    """

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        model: LivtMAEForPreTraining,
        schedule: Schedule,
        monitor: Monitor,
        checkpoint: Path | None = None,
        *,
        betas: Sequence[float],
        weight_decay: float,
        accumulation_steps: int,
        save_every: int,
        logging_steps: int,
        compile: bool = False,
    ):
        self.run, self.accelerator, self.schedule, self.monitor = run, accelerator, schedule, monitor
        self.accumulation_steps, self.save_every, self.logging_steps = accumulation_steps, save_every, logging_steps
        if checkpoint is not None:
            load_weights(model, checkpoint)  # before it is sharded
        model.to(accelerator.device)
        self.prepare = compile_if_asked(accelerator, model, standardize, compile)
        self.statistics = statistics(tuple(monitor.mean), tuple(monitor.std), accelerator.device)
        optimizer = adamw(parameter_groups(model, weight_decay), schedule.peak_lr, betas)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        for method in ("features", "reconstruct"):
            register_fsdp_forward_method(self.model, method)  # does nothing without FSDP
        self.unwrapped = accelerator.unwrap_model(self.model)
        self.scheduler = schedule.scheduler(self.optimizer.optimizer)
        self.step = 0
        self.shown: dict[str, str] = {}  # in the progress bar
        # Accumulated on the device since the last logged step: reading it at every step would stall it.
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.loss_check = LossCheck(accelerator, run.folder)
        if checkpoint is not None:
            self._load(checkpoint)

    def train(self, micro_batches: Iterable[dict[str, Tensor]]) -> str | None:
        """Train to the end of the schedule.

        Returns:
            The name of the signal that stopped training early, or None.
        """
        steps, micro_batches = self.schedule.steps, on_device(micro_batches, self.accelerator.device)
        self.run.begin(self.step)
        bar = tqdm(total=steps, initial=self.step, disable=not self.run.is_main, desc="pretraining", unit="step")
        stopped_by = None
        with self.run.stop_signal, bar:
            if self._monitoring_is_missing():
                self._monitor(bar)
                stopped_by = self.run.interrupted
            clock, clock_step = time.perf_counter(), self.step
            while self.step < steps and not stopped_by:
                self._optimizer_step(micro_batches)
                bar.update()
                if self.step % self.logging_steps == 0 or self.step == steps:
                    values = self._read_logs()
                    seconds, clock = time.perf_counter() - clock, time.perf_counter()
                    speed = (self.step - clock_step) * self.schedule.global_batch_size / seconds
                    clock_step = self.step
                    values["images_per_second"] = round(speed, 1)
                    self._log(values, bar)
                interrupted = time.perf_counter()
                self._monitor(bar)
                stopped_by = self.run.stop_requested(self.accelerator, self.step)
                if (self.step % self.save_every == 0 and self.step < steps) or stopped_by:
                    self.save()
                clock += time.perf_counter() - interrupted  # excluded from the training speed
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return stopped_by

    def _log(self, values: dict[str, float], bar: tqdm) -> None:
        """Write to log file, trackers and progress bar."""
        self.run.log(values)
        self.accelerator.log({name: value for name, value in values.items() if name != "step"}, step=self.step)
        formats = {"loss": ".4f", "lr": ".2e", "images_per_second": ".0f", "probe_accuracy": ".1f"}
        self.shown |= {name: format(values[name], form) for name, form in formats.items() if name in values}
        bar.set_postfix(self.shown, refresh=False)

    def _monitor(self, bar: tqdm) -> None:
        """Probe and draw if due; before a checkpoint of the same step, so that a resume does not skip them."""
        last = self.step == self.schedule.steps
        if not last and not self.monitor.probe_is_due(self.step) and not self.monitor.picture_is_due(self.step):
            return
        with self.run.evaluation(self.accelerator) as watch:
            values = self.monitor.probe(self.unwrapped, self.step, watch)
            if values:
                self._log({"step": self.step, "epoch": self._epoch(), **values}, bar)
            self.monitor.draw(self.unwrapped, self.step, last)

    def _monitoring_is_missing(self) -> bool:
        """Whether the probe of the first step is not in the log: it is that of step 0, or a signal stopped it."""
        missing = 0.0
        if self.run.is_main:
            logged = {line["step"] for line in read_metrics(self.run.folder) if "probe_accuracy" in line}
            missing = float(self.step not in logged if self.monitor.probe_is_due(self.step) else self.step == 0)
        return bool(self.accelerator.reduce(torch.tensor(missing, device=self.accelerator.device), "sum").item())

    def _epoch(self) -> float:
        return round(self.step / self.schedule.steps_per_epoch, 4)

    def _optimizer_step(self, micro_batches: Iterator[dict[str, Tensor]]) -> None:
        accelerator = self.accelerator
        loss_sum = torch.zeros_like(self.loss_sum)
        for micro_batch in range(self.accumulation_steps):
            last = micro_batch == self.accumulation_steps - 1
            batch = next(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                pixels = self.prepare(batch["pixel_values"], *self.statistics)
                loss = self.model(pixels, noise=batch["noise"]).loss / self.accumulation_steps
                accelerator.backward(loss)
            loss_sum += loss.detach()
        self.loss_check.before_update(self.optimizer.optimizer, loss_sum, self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.loss_sum += loss_sum

    def _read_logs(self) -> dict[str, float]:
        """Mean loss over processes and steps since the last call, and the learning rate.

        Raises:
            ValueError: a loss was not finite; its update was skipped.
        """
        self.loss_check.raise_if_bad()
        window = (self.step - 1) % self.logging_steps + 1
        loss = self.accelerator.reduce(self.loss_sum, "mean").item() / window
        self.loss_sum.zero_()
        return {
            "step": self.step,
            "epoch": self._epoch(),
            "loss": loss,
            "lr": self.scheduler.get_last_lr()[0],
        }

    def whole_weights(self) -> dict[str, Any]:
        """All weights by name, gathered from FSDP shards, on the main process; all processes must call it."""
        return get_model_state_dict(self.unwrapped, options=FULL_STATE_DICT)

    def save(self) -> None:
        """Write a checkpoint; all processes must call it."""
        self.loss_check.raise_if_bad()
        loss_sum = self.accelerator.reduce(self.loss_sum, "mean")
        weights = self.whole_weights()
        optimizer = get_optimizer_state_dict(self.unwrapped, self.optimizer.optimizer, options=FULL_STATE_DICT)
        with self.run.checkpoint(self.step, self.accelerator) as folder:
            if self.run.is_main:
                self.unwrapped.save_pretrained(folder, state_dict=weights)
                torch.save(optimizer, folder / "optimizer.pt")
                torch.save(random_state(self.accelerator.device), folder / "random.pt")
                if self.accelerator.scaler is not None:
                    torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
                state = {"loss_sum": loss_sum.item(), **self.run.record, "steps": self.step}
                write_text(folder / STATE_FILE, json.dumps(state, indent=2))

    def _load(self, checkpoint: Path) -> None:
        """Restore everything but the weights.

        Schedule and data position are functions of the step; optimizer options come from the current arguments.
        """
        state = read_checkpoint_record(checkpoint, STATE_FILE)
        self.step = state["steps"]
        self.loss_sum.fill_(state["loss_sum"])
        load_optimizer(self.unwrapped, self.optimizer.optimizer, load_tensors(checkpoint / "optimizer.pt"))
        set_schedule(self.scheduler, self.step)
        set_random_state(load_tensors(checkpoint / "random.pt"), self.accelerator.device)
        scaler = checkpoint / "scaler.pt"
        if self.accelerator.scaler is not None and scaler.exists():
            self.accelerator.scaler.load_state_dict(load_tensors(scaler))
