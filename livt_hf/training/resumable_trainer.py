"""ResumableTrainer: atomic checkpoints, exact resume, log, stop signal and progress bar, for `RecipeTrainer`."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..data import TrainingBatches
from ..evaluation.knn import Watch
from ..files import RUN_FILE, read_metrics, write_text
from ..models.adapters import Adapter, add_adapter, merge_adapter
from ..optimization import WeightAverage
from .best_epoch import BestEpoch, load_best
from .checkpoint import FULL_STATE_DICT, load_optimizer, load_tensors, load_weights, save_trained, set_schedule
from .classifier_retraining import fold_scales, load_scales, save_scales
from .data import EpochLoader
from .lock import lock_folder
from .loss_check import LossCheck
from .record import read_checkpoint_record
from .run import Run
from .stopping import Stopped
from .trainer import BalancedTrainer

logger = logging.getLogger(__name__)


class ResumableTrainer(BalancedTrainer):
    """A `BalancedTrainer` with atomic checkpoints from which runs resume exactly.

    Attributes:
        training_batches: the subclass's method: the micro-batches of this process from one optimizer step to another.
        run: the run in its output folder.
        loss_check: skips updates of non-finite losses.
        step_loss: loss of the current step, summed over its micro-batches so far.
        ema: moving average of the weights, saved and restored with them.
        best_epoch: keeps the best weights, with which training ends.
        classifier_only: only the classifier is trained; the scales of LWS are saved beside the native model.
        adapter: light fine-tuning; checkpoints then hold the trained parameters alone.
        stopped_by: name of the signal that stopped training, if any.
        resumed_from: checkpoint that training resumed from, if any.
    """

    model: PreTrainedModel
    training_batches: Callable[..., TrainingBatches]
    run: Run
    loss_check: LossCheck
    step_loss: Tensor | None = None
    ema: WeightAverage | None
    classifier_only: bool
    adapter: Adapter
    best_epoch: BestEpoch | None
    stopped_by: str | None = None
    resumed_from: Path | None = None
    epoch_loader: EpochLoader | None = None
    watch: Watch = staticmethod(iter)  # gets the batches of an evaluation
    _staging: Path | None = None
    _logged_size = False

    def _add_callbacks(self) -> None:
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(StepCallback(self))
        if not self.args.disable_tqdm:
            self.add_callback(ProgressBar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream; SIGTERM and SIGUSR1 end training after the current step, with a checkpoint."""
        with lock_folder(self.run.folder), self.run.stop_signal:
            try:
                output = super().train(*args, **kwargs)
                self.loss_check.raise_if_bad()
                return output
            except Stopped:
                return None
            finally:
                if self.epoch_loader is not None:
                    self.epoch_loader.close()
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, ProgressBar):
                        callback.close()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save:
            self.loss_check.raise_if_bad()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As upstream; a signal stops it, and then training with a checkpoint, from which a resume evaluates first."""
        with self.run.evaluation(self.accelerator) as self.watch:
            return super()._evaluate(*args, **kwargs)
        self.stopped_by = self.run.interrupted
        self.control.should_save = self.control.should_training_stop = True
        return {}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Only at logged steps: without clipping, upstream reads and rescales all gradients for it at every step."""
        args, step = self.args, self.state.global_step + 1
        every = args.logging_strategy != IntervalStrategy.STEPS or (step == 1 and args.logging_first_step)
        if grad_norm is None and not every and step % self.state.logging_steps:
            return None
        return super()._get_grad_norm(model, grad_norm)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As upstream, which counts the parameters at every step."""
        return 6 * inputs["pixel_values"].numel() * self._num_parameters

    @functools.cached_property
    def _num_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As upstream, but into a hidden folder that is renamed once it is complete on disk."""
        saves = self.args.should_save
        with self.run.checkpoint(self.state.global_step, self.accelerator, saves) as folder:
            self._staging = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            # Upstream drops the losses since the last logged step.
            loss_sum = self.accelerator.reduce(self._tr_loss.detach().clone(), "mean").item()
            if saves:
                save_scales(self.accelerator.unwrap_model(self.model), folder)
                if self.ema is not None:
                    self.ema.save(folder)
                logging_state = {"loss_sum": loss_sum, "last_step": self._globalstep_last_logged}
                record = {**self.run.record, "logging": logging_state}
                write_text(folder / RUN_FILE, json.dumps(record, indent=2))
                if self.adapter.kind != "none" and not self._logged_size:
                    self._logged_size = True
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    logger.info(f"a checkpoint holds the trained parameters and the optimizer's: {size / 1e6:,.1f} MB")

    def final_model(self) -> PreTrainedModel:
        """The model to save at the end: `whole_model` with the moving average or the best weights, if any.

        Adapters are merged and scales folded in.
        """
        model = self.whole_model()
        if self.is_world_process_zero():
            if self.ema is not None:
                model.load_state_dict(self.ema.weights, strict=False)
            if self.best_epoch is not None:
                load_best(model, self.run.folder)
            merge_adapter(model)
            fold_scales(model)
        return model

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The model has the weights of the moving average, if there is one, within this context."""
        if self.ema is None:
            return contextlib.nullcontext()
        return self.ema.applied_to(self.accelerator.unwrap_model(self.model))

    def whole_model(self) -> PreTrainedModel:
        """The model without wrappers, its weights gathered from FSDP shards.

        All processes must call it; with FSDP, only the main one gets the weights.
        """
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if not self.is_fsdp_enabled:
            return model
        weights = get_model_state_dict(model, options=FULL_STATE_DICT)
        whole = type(model)(model.config)  # FSDP's class makes one of the original class
        add_adapter(whole, self.adapter)
        if self.is_world_process_zero():
            whole.load_state_dict(weights)
        return whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save unsharded tensors with FSDP, too, so that `from_pretrained` reads every checkpoint."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = get_model_state_dict(self.model, options=FULL_STATE_DICT)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def optimizer_and_schedule(self) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer (unwrapped) and schedule, once training has begun."""
        assert isinstance(self.optimizer, AcceleratedOptimizer)
        assert self.lr_scheduler is not None
        return self.optimizer.optimizer, self.lr_scheduler

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save by tensor name, so that a run can resume on another engine (one device, DDP, FSDP2)."""
        model = self.accelerator.unwrap_model(self.model)
        optimizer, schedule = self.optimizer_and_schedule()
        state = get_optimizer_state_dict(model, optimizer, options=FULL_STATE_DICT)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore state but not options, which the arguments may have changed since the checkpoint."""
        if checkpoint is None:
            return
        model = self.accelerator.unwrap_model(self.model)
        optimizer, schedule = self.optimizer_and_schedule()
        load_optimizer(model, optimizer, load_tensors(Path(checkpoint) / "optimizer.pt"))
        # Not the global step: with fp16, the schedule pauses when the scaler skips an update.
        set_schedule(schedule, load_tensors(Path(checkpoint) / "scheduler.pt")["last_epoch"])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: the folder is about to be renamed, and `Run.checkpoint` uploads it afterwards."""

    def _finish_current_push(self) -> None:
        if self.run.pusher:
            self.run.pusher.wait()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.adapter.kind != "none":
            save_trained(self.model, Path(output_dir or str(self.args.output_dir)), state_dict)
            return
        if state_dict is None and self.classifier_only:  # `save_scales` saves those
            state_dict = {name: w for name, w in self.model.state_dict().items() if not name.endswith(".scales")}
        super()._save(output_dir, state_dict)
        output_dir = output_dir or self.args.output_dir
        assert output_dir is not None  # TrainingArguments puts a default there
        # A pickle that is never read; the arguments are in run.json.
        with contextlib.suppress(FileNotFoundError):
            (Path(output_dir) / "training_args.bin").unlink()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load through `from_pretrained`: upstream would silently skip tensors whose names were mapped on saving."""
        self.resumed_from = Path(resume_from_checkpoint)
        model = self.model if model is None else model
        assert isinstance(model, PreTrainedModel)  # FSDP's class is a subclass of the model's
        load_weights(model, self.resumed_from, sharded=self.is_fsdp_enabled)
        load_scales(model, self.resumed_from)
        if self.ema is not None:
            self.ema.load(self.resumed_from, model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "train_runtime" not in logs:
            values = {"lr" if name == "learning_rate" else name: value for name, value in logs.items()}
            self.run.log({"step": self.state.global_step, "epoch": self.state.epoch, **values})


class StepCallback(TrainerCallback):
    """Begins the log; updates epoch and weight average at every step; stops on a signal."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps_per_epoch = self.trainer.training_batches().steps_per_epoch
        if self.trainer.resumed_from is not None:
            record = read_checkpoint_record(self.trainer.resumed_from, RUN_FILE)
            self.trainer._tr_loss.fill_(record["logging"]["loss_sum"])
            self.trainer._globalstep_last_logged = record["logging"]["last_step"]
        self.trainer.run.begin(state.global_step)
        if self._evaluation_is_missing(args, state):
            self.trainer._evaluate(None, None)
            if self.trainer.stopped_by:
                raise Stopped(self.trainer.stopped_by)

    def _evaluation_is_missing(self, args, state):
        """Whether a signal stopped the evaluation at the step that training resumes from."""
        step, missing = state.global_step, 0.0
        if self.trainer.run.is_main and step and args.eval_strategy == IntervalStrategy.STEPS:
            logged = {line["step"] for line in read_metrics(self.trainer.run.folder) if "eval_accuracy" in line}
            missing = float((step % state.eval_steps == 0 or step == state.max_steps) and step not in logged)
        return self.trainer.accelerator.reduce(torch.tensor(missing, device=args.device), "sum").item() > 0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        optimizer, _ = trainer.optimizer_and_schedule()
        trainer.loss_check.before_update(optimizer, trainer.step_loss, state.global_step + 1)
        trainer.step_loss = None

    def on_step_end(self, args, state, control, **kwargs):
        # Upstream counts epochs from the resumed step.
        state.epoch = state.global_step / self.steps_per_epoch
        if self.trainer.ema is not None:
            self.trainer.ema.update(self.trainer.accelerator.unwrap_model(self.trainer.model))
        stopped_by = self.trainer.run.stop_requested(self.trainer.accelerator, state.global_step)
        if stopped_by:
            self.trainer.stopped_by = stopped_by
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # a resume begins with it
        return control


class ProgressBar(TrainerCallback):
    """Progress with the last logged loss, learning rate and validation accuracies."""

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
