"""``--keep_best`` and ``--early_stopping``: the weights of the best validation epoch become the result of a run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from ..files import publish, write_text
from .checkpoint import list_checkpoints, load_weights
from .classifier_retraining import load_scales, save_scales

logger = logging.getLogger(__name__)

_METRICS = {"macro": "macro_accuracy"}  # options whose metric has another name
_FOLDER = re.compile(r"\.best-(\d+)")
_RECORD = "best.json"


class BestEpoch(TrainerCallback):
    """Saves the weights after each evaluation that is better than all before, in a hidden folder of the run.

    A run that resumes at a step continues with the best weights up to that step: those of the last checkpoint are kept
    beside newer ones.

    Args:
        trainer: a `RecipeTrainer`.
        metric: "accuracy", "many", "medium", "few" or "macro".
        patience: stop after this number of evaluations without improvement; None: never.
    """

    def __init__(self, trainer: Any, metric: str, patience: int | None = None):
        self.trainer, self.metric, self.patience = trainer, metric, patience
        self.folder: Path = trainer.run.folder

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.run.is_main:
            for step, folder in _saved(self.folder):
                if step > state.global_step:  # of a part of the run that is repeated
                    shutil.rmtree(folder, ignore_errors=True)
            if state.global_step >= state.eval_steps and not _saved(self.folder):
                logger.warning(
                    f"keep_best: weights of epochs before step {state.global_step} are not saved any more: the best "
                    "epoch is chosen from the rest"
                )
        if self._decide([self._is_exhausted(state)])[0]:  # stopped early before, and killed before it was finished
            control.should_training_stop = True
        return control

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        value, step = metrics[f"eval_{_METRICS.get(self.metric, self.metric)}"], state.global_step
        best = self._best(step)
        is_best = best is None or value > best["value"]
        is_best, stops = self._decide([is_best, not is_best and self._is_exhausted(state)])
        if is_best:
            self._save(step, {"metric": self.metric, "epoch": state.epoch, "step": step, "value": value})
        if stops:
            logger.info(f"early stopping at step {step}: {self.patience} evaluations without improvement")
            control.should_training_stop = True
        return control

    def _is_exhausted(self, state: Any) -> bool:
        """Whether the best weights are ``patience`` evaluations old."""
        best = self._best(state.global_step)
        if best is None or self.patience is None:
            return False
        return state.global_step - best["step"] >= self.patience * state.eval_steps

    def _best(self, step: int) -> dict[str, Any] | None:
        """The record of the best weights up to a step, in the main process."""
        saved = [folder for at, folder in _saved(self.folder) if at <= step]
        return _read(saved[-1]) if saved and self.trainer.run.is_main else None

    def _decide(self, decision: list[bool]) -> list[bool]:
        """What the main process has decided, in all of them."""
        return broadcast_object_list(decision) if self.trainer.args.world_size > 1 else decision

    def _save(self, step: int, record: Mapping[str, Any]) -> None:
        trainer, staging = self.trainer, self.folder / ".best.tmp"
        model = trainer.accelerator.unwrap_model(trainer.model)
        if trainer.run.is_main:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        trainer.accelerator.wait_for_everyone()
        with trainer.averaged_weights():
            trainer.save_model(str(staging), _internal_call=True)
        if not trainer.run.is_main:
            return
        save_scales(model, staging)
        write_text(staging / _RECORD, json.dumps(record))
        publish(staging, self.folder / f".best-{step}")
        last_checkpoint = max((at for at, _ in list_checkpoints(self.folder)), default=0)
        resumable = max((at for at, _ in _saved(self.folder) if at <= last_checkpoint), default=None)
        for at, folder in _saved(self.folder):
            if at not in (step, resumable):
                shutil.rmtree(folder, ignore_errors=True)


def best_record(folder: Path) -> dict[str, Any] | None:
    """Metric, epoch, step and value of the newest saved weights, which are the best; None if there are none."""
    saved = _saved(folder)
    return _read(saved[-1][1]) if saved else None


def load_best(model: Any, folder: Path) -> None:
    """Load the best weights of a run, if there are any, into its (unsharded) model."""
    saved = _saved(folder)
    if saved:
        load_weights(model, saved[-1][1])
        load_scales(model, saved[-1][1])


def remove_best(folder: Path) -> None:
    """Delete the saved weights of a run, once they are its result."""
    for _, saved in _saved(folder):
        shutil.rmtree(saved, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _RECORD).read_text(encoding="utf-8"))


def _saved(folder: Path) -> list[tuple[int, Path]]:
    matches = [(_FOLDER.fullmatch(path.name), path) for path in folder.glob(".best-*")]
    return sorted((int(match[1]), path) for match, path in matches if match)
