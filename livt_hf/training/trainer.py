"""BalancedTrainer: a `transformers.Trainer` for balanced fine-tuning, for any run that has images, labels and counts.

What upstream's Trainer lacks, each piece beside its reason: exact resume, complete checkpoints, the paper's schedule
and layer decay, mixup of the global batch, accuracies by shot group.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from ..class_names import check_same_names
from ..data import ImageDataset, Mixup, TrainingBatches, erase, evaluation_loader, normalize
from ..data.streaming import StreamedSamples
from ..data.transforms import image_processor
from ..evaluation.predictions import predict_split
from ..files import RUN_FILE, write_text
from ..losses import Loss, build_loss, deferred_weights
from ..metrics import calibration_error, long_tail_accuracy
from ..models.configuration_livt import check_not_adjusted, ordered_class_counts
from ..optimization import WeightAverage, adamw, parameter_groups, warmup_cosine
from .callbacks import ProgressBar, StepCallback
from .checkpoint import FULL_STATE_DICT, load_optimizer, load_tensors, load_weights, set_schedule
from .classifier_retraining import fold_scales, load_scales, save_scales
from .run import Run, not_finite, trainer_pusher


class BalancedTrainer(Trainer):
    """A `transformers.Trainer` for balanced fine-tuning.

    Differs from it in: layer-wise learning-rate decay and the paper's schedule; images and their augmentation that
    depend on seed, epoch and index alone, so that runs resume exactly and do not depend on the number of processes;
    mixup of the global batch; checkpoints that are complete or not there; weights restored completely; accuracies of
    the many-, medium- and few-shot classes as evaluation; a non-finite loss stops the run.

    Args:
        model: any image classifier of transformers. `ViTForBalancedClassification` knows its class counts and loss;
            for another one, `store_class_counts` writes them into its config first. The loss is computed here from the
            logits, so that soft labels serve every model.
        args: ``learning_rate`` is the peak rate; ``max_steps`` or ``num_train_epochs`` set the length.
        train_dataset: `ImageDataset` or `StreamedSamples` with a `FinetuneTransform`.
        eval_dataset: `ImageDataset` with an `EvalTransform`.
        mean, std: normalization of pixels in 0..1, per channel.
        layer_decay: see `parameter_groups`.
        min_lr, warmup_epochs: see `learning_rate`.
        mixup: what mixes a batch; None leaves hard labels.
        ema: decay of the moving average of the weights (`WeightAverage`), which is then what is evaluated.
        classifier_only: the batches hold each class equally often, and the model, of which `train_classifier_only`
            froze all but the classifier, stays in evaluation mode.
        drw_epoch: epoch from which ldam weights the classes (`deferred_weights`); None leaves it out.
        run: the run in its output folder, if a stage has opened one.
    """

    model: PreTrainedModel
    train_dataset: ImageDataset | StreamedSamples
    eval_dataset: ImageDataset | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        train_dataset: ImageDataset | StreamedSamples,
        eval_dataset: ImageDataset | None = None,
        mean: Sequence[float],
        std: Sequence[float],
        layer_decay: float = 1.0,
        min_lr: float = 0.0,
        warmup_epochs: float = 0.0,
        mixup: Mixup | None = None,
        ema: float | None = None,
        drw_epoch: float | None = None,
        classifier_only: bool = False,
        run: Run | None = None,
        **kwargs: Any,
    ):
        self.loss = training_loss(model.config)
        self.reweighted_loss = None if drw_epoch is None else training_loss(model.config, reweighted=True)
        check_labels(model.config, train_dataset)
        if classifier_only and train_dataset.labels is None:
            raise ValueError("stage: class-balanced batches need all labels at hand; leave out --streaming")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: the loss is that of the model's config; set it by store_class_counts")
        args.ignore_data_skip = True  # the data position is a function of the global step
        args.remove_unused_columns = False
        with _tracker_errors():
            super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        # Its own loss is a mean over the micro-batch, to be averaged over accumulation steps, whatever the model takes.
        self.model_accepts_loss_kwargs = False
        self.mean, self.std, self.mixup = mean, std, mixup
        self.layer_decay, self.min_lr, self.warmup_epochs = layer_decay, min_lr, warmup_epochs
        self.drw_epoch, self.classifier_only = drw_epoch, classifier_only
        if ema is not None and self.is_fsdp_enabled:
            raise ValueError("ema: sharded weights (FSDP) cannot be averaged; leave one of the two out")
        if classifier_only and self.is_fsdp_enabled:
            raise ValueError("stage: a classifier alone needs no sharded weights; launch it without FSDP")
        self.ema = None if ema is None else WeightAverage(self.model, ema)
        self.run = run or self._own_run()
        self.stopped_by: str | None = None
        self.resumed_from: Path | None = None
        self._staging: Path | None = None
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(StepCallback(self))
        if not args.disable_tqdm:
            self.add_callback(ProgressBar)

    def _own_run(self) -> Run:
        """The run of a trainer that no stage has made; it uploads with ``TrainingArguments(push_to_hub=True)``."""
        args, is_main = self.args, self.is_world_process_zero()
        pusher = None
        if args.push_to_hub and is_main:
            size = self.model.config.image_size
            processor = self.processing_class or image_processor(size, 0.875, self.mean, self.std)
            pusher = trainer_pusher(args, str(self.hub_model_id), processor)
        assert args.output_dir is not None  # TrainingArguments puts a default there
        return Run(args.output_dir, is_main=is_main, pusher=pusher, save_total_limit=args.save_total_limit)

    # Data

    def training_batches(self, start_step: int = 0, stop_step: int | None = None) -> TrainingBatches:
        args, dataset = self.args, self.train_dataset
        if self.mixup is not None and args.per_device_train_batch_size % 2:
            raise ValueError(
                f"batch_size: {args.per_device_train_batch_size} is odd, and mixup mixes neighbors; use an even one"
            )
        return TrainingBatches(
            dataset.num_images,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            seed=args.seed,
            start_step=start_step,
            stop_step=stop_step,
            labels=dataset.labels if self.classifier_only else None,
        )

    def get_train_dataloader(self) -> _EpochLoader:  # type: ignore[override]  # Trainer takes anything it can iterate
        return _EpochLoader(self)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch of the loader -> what the model takes, on the device: normalized, erased and mixed."""
        inputs = super()._prepare_inputs(inputs)
        if "erase_box" not in inputs:
            return inputs
        pixels = normalize(inputs["pixel_values"], self.mean, self.std)
        pixels = erase(pixels, inputs["erase_box"], inputs["erase_seed"])
        labels = inputs["labels"]
        if self.mixup is not None:
            pixels, labels = self.mixup(pixels, labels, self.state.global_step)
        return {"pixel_values": pixels, "labels": labels}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of the config, from the logits; the model never sees the labels."""
        if self.classifier_only:
            model.eval()
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self.loss_now()(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def loss_now(self) -> Loss:
        """The loss of the current step: from ``drw_epoch`` on, the re-weighted one."""
        if self.reweighted_loss is None or self.drw_epoch is None:
            return self.loss
        epoch = self.state.global_step / self.training_batches().steps_per_epoch
        return self.reweighted_loss if epoch >= self.drw_epoch - 1e-9 else self.loss

    # Optimization

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(self.model if model is None else model, args.weight_decay, self.layer_decay)
            self.optimizer = adamw(groups, args.learning_rate, (args.adam_beta1, args.adam_beta2))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            steps_per_epoch = self.training_batches().steps_per_epoch
            self.lr_scheduler = warmup_cosine(
                optimizer or self.create_optimizer(),
                steps_per_epoch,
                self.args.learning_rate,
                self.min_lr,
                self.warmup_epochs,
                num_training_steps / steps_per_epoch,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        """Log the head's, as the official code does; upstream takes the first group, which layer decay slows most."""
        assert self.lr_scheduler is not None  # training has begun
        return float(max(self.lr_scheduler.get_last_lr()))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise not_finite(self.state.global_step + 1, self.run.folder)
        return loss

    # Evaluation

    def evaluate(  # type: ignore[override]  # Trainer also takes datasets of other kinds
        self,
        eval_dataset: ImageDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Overall, many-, medium- and few-shot accuracy, ECE and MCE in percent; processes share the images."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("eval_dataset: there is nothing to evaluate on; give the dataset a validation split")
        if not len(dataset):
            raise ValueError("eval_dataset: the split to evaluate on has no images; fill it, or leave it out")
        model, args = self.accelerator.unwrap_model(self.model), self.args
        config: Any = self.model.config
        was_training = model.training
        share = range(args.process_index, len(dataset), args.world_size)
        # As many images for every process, since those of FSDP run each batch together; what is too much is cut off.
        padded = range(args.process_index, -(-len(dataset) // args.world_size) * args.world_size, args.world_size)
        mine = Subset(dataset, [index % len(dataset) for index in padded])
        loader = evaluation_loader(mine, args.per_device_eval_batch_size, args.dataloader_num_workers)
        with contextlib.nullcontext() if self.ema is None else self.ema.applied_to(model):
            outcome = predict_split(model, loader, self.mean, self.std, args.device)
        model.train(was_training)
        if args.world_size > 1:
            parts = gather_object([{name: values[: len(share)] for name, values in outcome.items()}])
            outcome = {name: np.concatenate([part[name] for part in parts]) for name in outcome}
        arrays = outcome["labels"], outcome["predictions"]
        counts = ordered_class_counts(config)
        accuracy = long_tail_accuracy(*arrays, counts, config.shot_groups)
        values = {name: accuracy[name] for name in ("accuracy", "many", "medium", "few")}
        values |= calibration_error(*arrays, outcome["confidences"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.run.stop_signal:
            try:
                return super().train(*args, **kwargs)
            finally:
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, ProgressBar):
                        callback.close()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As upstream, but into a hidden folder that is renamed once everything is on the disk."""
        saves = self.args.should_save
        with self.run.checkpoint(self.state.global_step, self.accelerator, saves) as folder:
            self._staging = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            # Upstream forgets the losses since the last logged step.
            loss_sum = self.accelerator.reduce(self._tr_loss.detach().clone(), "mean").item()
            if saves:
                save_scales(self.accelerator.unwrap_model(self.model), folder)
                if self.ema is not None:
                    self.ema.save(folder)
                logging_state = {"loss_sum": loss_sum, "last_step": self._globalstep_last_logged}
                record = {**self.run.record, "logging": logging_state}
                write_text(folder / RUN_FILE, json.dumps(record, indent=2))

    def final_model(self) -> PreTrainedModel:
        """`whole_model` as it is saved in the end: the moving average if there is one, scales folded in."""
        model = self.whole_model()
        if self.is_world_process_zero():
            if self.ema is not None:
                model.load_state_dict(self.ema.weights)
            fold_scales(model)
        return model

    def whole_model(self) -> PreTrainedModel:
        """The trained model as it will be loaded: without mixed precision, put together from the shards of FSDP.

        All processes call it; of FSDP's, the main one alone gets the weights.
        """
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if not self.is_fsdp_enabled:
            return model
        weights = get_model_state_dict(model, options=FULL_STATE_DICT)
        whole = type(model)(model.config)  # FSDP's class makes one of the original class
        if self.is_world_process_zero():
            whole.load_state_dict(weights)
        return whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole tensors under FSDP, too, so that `from_pretrained` reads every checkpoint."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = get_model_state_dict(self.model, options=FULL_STATE_DICT)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _optimizer_and_schedule(self) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Those of a run that has begun: the optimizer is the one inside Accelerate's."""
        assert isinstance(self.optimizer, AcceleratedOptimizer)
        assert self.lr_scheduler is not None
        return self.optimizer.optimizer, self.lr_scheduler

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """By tensor name, so that a run goes on with another engine (one device, DDP, FSDP2)."""
        model = self.accelerator.unwrap_model(self.model)
        optimizer, schedule = self._optimizer_and_schedule()
        state = get_optimizer_state_dict(model, optimizer, options=FULL_STATE_DICT)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The options of both stay those of the arguments, which may have changed since the checkpoint."""
        if checkpoint is None:
            return
        model = self.accelerator.unwrap_model(self.model)
        optimizer, schedule = self._optimizer_and_schedule()
        load_optimizer(model, optimizer, load_tensors(Path(checkpoint) / "optimizer.pt"))
        # Not the global step: with fp16, the schedule waits where the scaler skips an update.
        set_schedule(schedule, load_tensors(Path(checkpoint) / "scheduler.pt")["last_epoch"])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not yet: upstream would upload from a folder that is about to be renamed. `_save_checkpoint` does it."""

    def _finish_current_push(self) -> None:
        if self.run.pusher:
            self.run.pusher.wait()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is None and self.classifier_only:  # `save_scales` keeps the rest
            state_dict = {name: w for name, w in self.model.state_dict().items() if not name.endswith(".scales")}
        super()._save(output_dir, state_dict)
        output_dir = output_dir or self.args.output_dir
        assert output_dir is not None  # TrainingArguments puts a default there
        # A pickle, which nothing here reads; run.json holds the arguments.
        with contextlib.suppress(FileNotFoundError):
            (Path(output_dir) / "training_args.bin").unlink()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Upstream loads the file raw: names that were mapped on saving are then silently left out."""
        self.resumed_from = Path(resume_from_checkpoint)
        model = self.model if model is None else model
        assert isinstance(model, PreTrainedModel)  # FSDP's class is a subclass of the model's
        load_weights(model, self.resumed_from, sharded=self.is_fsdp_enabled)
        load_scales(model, self.resumed_from)
        if self.ema is not None:
            self.ema.load(self.resumed_from, model)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "train_runtime" not in logs:
            values = {"lr" if name == "learning_rate" else name: value for name, value in logs.items()}
            self.run.log({"step": self.state.global_step, "epoch": self.state.epoch, **values})


@contextlib.contextmanager
def _tracker_errors() -> Iterator[None]:
    """A tracker that is not installed, as an error of one line."""
    try:
        yield
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        raise ValueError(f"report_to: {error}") from None


def training_loss(config: Any, reweighted: bool = False) -> Loss:
    """The loss that a config with `store_class_counts`'s fields describes; ``reweighted``: after ldam's deferral."""
    counts = ordered_class_counts(config)  # first: it says what is missing
    check_not_adjusted(config)
    if reweighted and config.loss != "ldam":
        raise ValueError(
            f"drw_epoch: deferred re-weighting belongs to ldam, and the loss is {config.loss}; leave it out"
        )
    options = {"class_weights": deferred_weights(counts, progress=1.0)} if reweighted else {}
    return build_loss(config.loss, counts, config.tau, config.label_smoothing, **options)


def check_labels(config: Any, dataset: ImageDataset | StreamedSamples) -> None:
    """ValueError unless label i of the training images is class i of the model."""
    found, expected = dataset.class_names, list(ordered_class_counts(config))
    check_same_names(expected, found, "the model", "the training images")
    if found != expected:
        label = next(label for label, name in enumerate(found) if name != expected[label])
        raise ValueError(
            f"class_counts: label {label} is {found[label]!r} in the training images, and {expected[label]!r} in the "
            "model; give both the same order"
        )


class _EpochLoader:
    """The training data as Trainer wants it, one iterator per epoch, over one loader that never pauses between epochs.

    The first iterator starts at the trainer's current step, so that a resumed run continues where it stopped.
    """

    def __init__(self, trainer: BalancedTrainer):
        self.trainer = trainer
        self.dataset = trainer.train_dataset  # read by Trainer
        self.micro_batches: Iterator[dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return self.trainer.training_batches().steps_per_epoch * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        state, args = self.trainer.state, self.trainer.args
        if self.micro_batches is None:
            batches = self.trainer.training_batches(state.global_step, state.max_steps)
            pin_memory = args.device.type == "cuda"
            self.micro_batches = iter(self.dataset.loader(batches, args.dataloader_num_workers, pin_memory))
        done = state.global_step * args.gradient_accumulation_steps % len(self)
        for _ in range(len(self) - done):
            batch = next(self.micro_batches, None)
            if batch is None:
                return
            yield batch
