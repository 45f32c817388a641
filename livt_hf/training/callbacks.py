"""Callbacks of `BalancedTrainer`: log, weight average, stop on a signal, progress bar."""

from __future__ import annotations

import json
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..files import RUN_FILE


class StepCallback(TrainerCallback):
    """At the start the log, at every step the epoch, the weight average and a stop on a signal."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps_per_epoch = self.trainer.training_batches().steps_per_epoch
        if self.trainer.resumed_from is not None:
            record = json.loads((self.trainer.resumed_from / RUN_FILE).read_text(encoding="utf-8"))
            self.trainer._tr_loss.fill_(record["logging"]["loss_sum"])
            self.trainer._globalstep_last_logged = record["logging"]["last_step"]
        self.trainer.run.begin(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        # Trainer counts from the first step after a resume; the epoch of a step does not depend on that.
        state.epoch = state.global_step / self.steps_per_epoch
        if self.trainer.ema is not None:
            self.trainer.ema.update(self.trainer.accelerator.unwrap_model(self.trainer.model))
        stopped_by = self.trainer.run.stop_requested(self.trainer.accelerator, state.global_step)
        if stopped_by and state.global_step < state.max_steps:
            self.trainer.stopped_by = stopped_by
            control.should_save = control.should_training_stop = True
        return control


class ProgressBar(TrainerCallback):
    """One line: steps, time left, the last logged loss and learning rate, the last validation accuracies."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.shown: dict[str, str] = {}
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            disable=not state.is_world_process_zero,
            desc="fine-tuning",
            unit="step",
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        formats = {"loss": ".3f", "learning_rate": ".2e", "eval_accuracy": ".1f", "eval_few": ".1f"}
        shown = {name: format(logs[name], form) for name, form in formats.items() if name in logs}
        self.shown |= {name.replace("learning_rate", "lr"): value for name, value in shown.items()}
        if hasattr(self, "bar"):
            self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self):
        if hasattr(self, "bar"):
            self.bar.close()
