"""BalancedTrainer: a `transformers.Trainer` for balanced fine-tuning of any image classifier.

It adds the paper's losses, schedule and layer decay, mixup of the global batch, accuracies by shot group and, from
`ResumableTrainer`, exact resume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainingArguments

from ..data import ImageDataset, Mixup, TrainingBatches, evaluation_loader
from ..data.batch_ops import augment, statistics
from ..data.streaming import StreamedSamples
from ..data.transforms import image_processor
from ..evaluation.predictions import predict_split
from ..losses import Loss, build_loss, deferred_weights
from ..metrics import calibration_error, long_tail_accuracy
from ..models.compilation import compile_if_asked
from ..models.configuration_livt import check_not_adjusted, ordered_class_counts
from ..optimization import WeightAverage, adamw, parameter_groups, warmup_cosine
from .data import EpochLoader, check_labels
from .loss_check import LossCheck
from .resumable_trainer import ResumableTrainer
from .run import Run, trainer_pusher


class BalancedTrainer(ResumableTrainer):
    """A `transformers.Trainer` for balanced fine-tuning.

    Differences: layer-wise learning-rate decay and the paper's schedule; augmentation depends on seed, epoch and sample
    index only, so that runs resume exactly and do not depend on the number of processes; mixup of the global batch;
    atomic checkpoints; evaluation reports many-, medium- and few-shot accuracy; a non-finite loss stops the run.

    Args:
        model: any image classifier of transformers, with class counts and loss in its config: those of
            `ViTForBalancedClassification` are there, `store_class_counts` writes them for any other model. The trainer
            computes the loss from the logits, so that soft labels work with every model.
        args: ``learning_rate`` is the peak rate; ``max_steps`` or ``num_train_epochs`` set the length of the schedule.
        train_dataset: `ImageDataset` or `StreamedSamples` with a `FinetuneTransform`.
        eval_dataset: `ImageDataset` with an `EvalTransform`.
        mean, std: normalization of pixels in 0..1, per channel.
        layer_decay: see `parameter_groups`.
        min_lr, warmup_epochs: see `learning_rate`.
        mixup: MixUp and CutMix; None keeps hard labels.
        ema: decay of the moving average of the weights (`WeightAverage`), which is then evaluated and saved.
        drw_epoch: epoch from which ldam re-weights the classes (`deferred_weights`); None: never.
        classifier_only: for a model frozen by `train_classifier_only`: class-balanced batches, and the model stays in
            evaluation mode.
        run: the run opened by `finetune`; by default, the trainer opens one.

    Raises:
        ValueError: the config lacks class counts, labels of the dataset and the model differ, or options conflict.
    """

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
            raise ValueError("stage: class-balanced batches need the labels in advance; leave out --streaming")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: the model's config sets the loss; change it with store_class_counts")
        args.ignore_data_skip = True  # the data position is a function of the global step
        args.remove_unused_columns = False
        with _tracker_errors():
            super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.augment = compile_if_asked(self.accelerator, self.model, augment)
        # The loss is a mean over the micro-batch and must be averaged over accumulation steps, for every model.
        self.model_accepts_loss_kwargs = False
        self.mean, self.std, self.mixup = mean, std, mixup
        self.layer_decay, self.min_lr, self.warmup_epochs = layer_decay, min_lr, warmup_epochs
        self.drw_epoch, self.classifier_only = drw_epoch, classifier_only
        if ema is not None and self.is_fsdp_enabled:
            raise ValueError("ema: sharded weights (FSDP) cannot be averaged; use one without the other")
        if classifier_only and self.is_fsdp_enabled:
            raise ValueError("stage: classifier retraining does not support FSDP; launch it without")
        self.ema = None if ema is None else WeightAverage(self.model, ema)
        self.run = run or self._own_run()
        self.loss_check = LossCheck(self.accelerator, self.run.folder)
        self._add_callbacks()

    def _own_run(self) -> Run:
        """The run of a trainer used on its own; it uploads with ``TrainingArguments(push_to_hub=True)``."""
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
        """The micro-batches of this process from one optimizer step to another."""
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

    def get_train_dataloader(self) -> EpochLoader:  # type: ignore[override]  # Trainer takes anything it can iterate
        self.epoch_loader = EpochLoader(self)
        return self.epoch_loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a micro-batch to the device, then normalize, erase and mix it."""
        inputs = super()._prepare_inputs(inputs)
        if "erase_box" not in inputs:
            return inputs
        size, device = inputs["pixel_values"].shape[-2:], inputs["pixel_values"].device
        drawn = None if self.mixup is None else self.mixup.draw_tensor(self.state.global_step, size, device)
        mean, std = statistics(tuple(self.mean), tuple(self.std), device)
        pixels, labels = self.augment(inputs, mean, std, self.mixup, drawn)
        return {"pixel_values": pixels, "labels": labels}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The config's loss, computed from the logits; labels are not passed to the model."""
        if self.classifier_only:
            model.eval()
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self.current_loss()(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def current_loss(self) -> Loss:
        """The loss function of the current step: re-weighted from ``drw_epoch`` on."""
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
        """The head's, as the official code logs it; upstream logs the first group's, lowered by layer decay."""
        assert self.lr_scheduler is not None  # training has begun
        return float(max(self.lr_scheduler.get_last_lr()))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    # Evaluation

    @torch.compiler.set_stance("force_eager")  # the last batch is smaller, and would compile again
    def evaluate(  # type: ignore[override]  # Trainer also takes datasets of other kinds
        self,
        eval_dataset: ImageDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Overall, many-, medium- and few-shot accuracy, ECE and MCE in percent; images are split among processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("eval_dataset: there is no split to evaluate on; give the dataset a validation split")
        if not len(dataset):
            raise ValueError("eval_dataset: the split to evaluate on is empty; add images, or leave it out")
        model, args = self.accelerator.unwrap_model(self.model), self.args
        config: Any = self.model.config
        was_training = model.training
        indices = range(args.process_index, len(dataset), args.world_size)
        # FSDP needs all processes in every batch: pad to equal numbers of images, then drop the padding.
        padded = range(args.process_index, -(-len(dataset) // args.world_size) * args.world_size, args.world_size)
        mine = Subset(dataset, [index % len(dataset) for index in padded])
        loader = self.watch(evaluation_loader(mine, args.per_device_eval_batch_size, args.dataloader_num_workers))
        with contextlib.nullcontext() if self.ema is None else self.ema.applied_to(model):
            outcome = predict_split(model, loader, self.mean, self.std, args.device)
        model.train(was_training)
        if args.world_size > 1:
            parts = gather_object([{name: values[: len(indices)] for name, values in outcome.items()}])
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


@contextlib.contextmanager
def _tracker_errors() -> Iterator[None]:
    """Turn Trainer's error about a tracker that is not installed into one line."""
    try:
        yield
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        raise ValueError(f"report_to: {error}") from None


def training_loss(config: Any, reweighted: bool = False) -> Loss:
    """The loss in a config (see `store_class_counts`); ``reweighted``: ldam from ``drw_epoch`` on."""
    counts = ordered_class_counts(config)  # raises if fields are missing
    check_not_adjusted(config)
    if reweighted and config.loss != "ldam":
        raise ValueError(
            f"drw_epoch: deferred re-weighting is for ldam only, and the loss is {config.loss}; leave it out"
        )
    options = {"class_weights": deferred_weights(counts, progress=1.0)} if reweighted else {}
    return build_loss(config.loss, counts, config.tau, config.label_smoothing, **options)
