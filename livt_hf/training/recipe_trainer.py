"""RecipeTrainer: `BalancedTrainer` with the training recipe of the paper, for `livt finetune`."""

from __future__ import annotations

from collections.abc import Sequence
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
from ..evaluation.predictions import predict_split
from ..losses import Loss, deferred_weights
from ..metrics import calibration_error, long_tail_accuracy
from ..models.adapters import Adapter
from ..models.compilation import compile_if_asked
from ..models.configuration_livt import config_loss, ordered_class_counts
from ..optimization import WeightAverage, adamw, parameter_groups, sgd, warmup_cosine
from .best_epoch import BestEpoch
from .data import EpochLoader, check_labels
from .loss_check import LossCheck
from .resumable_trainer import ResumableTrainer
from .run import Run


class RecipeTrainer(ResumableTrainer):
    """`BalancedTrainer` with the paper's recipe.

    Differences: layer-wise learning-rate decay and the paper's schedule; augmentation depends on seed, epoch and sample
    index only, so that runs resume exactly and do not depend on the number of processes; mixup of the global batch;
    atomic checkpoints; a non-finite loss stops the run.

    Args:
        model: any image classifier of transformers, with class counts and loss in its config: those of
            `ViTForBalancedClassification` are there, `store_class_counts` writes them for any other model.
        args: ``learning_rate`` is the peak rate; ``max_steps`` or ``num_train_epochs`` set the length of the schedule.
        train_dataset: `ImageDataset` or `StreamedSamples` with a `FinetuneTransform`.
        eval_dataset: `ImageDataset` with an `EvalTransform`.
        mean, std: normalization of pixels in 0..1, per channel.
        layer_decay: see `parameter_groups`.
        momentum: of SGD; None: AdamW, with the betas of ``args``.
        min_lr, warmup_epochs: see `learning_rate`.
        adapter: that of the model, if `add_adapter` has added one.
        mixup: MixUp and CutMix; None keeps hard labels.
        ema: decay of the moving average of the weights (`WeightAverage`), which is then evaluated and saved.
        drw_epoch: epoch from which ldam re-weights the classes (`deferred_weights`); None: never.
        classifier_only: for a model frozen by `train_classifier_only`: class-balanced batches, and the model stays in
            evaluation mode.
        keep_best: accuracy by which the best evaluated epoch becomes the result (`BestEpoch`); None: the last one does.
        early_stopping: evaluations without improvement of ``keep_best`` after which training stops; None: never.
        run: the run opened by `finetune`; by default, one in the folder of ``args``.

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
        momentum: float | None = None,
        adapter: Adapter | None = None,
        min_lr: float = 0.0,
        warmup_epochs: float = 0.0,
        mixup: Mixup | None = None,
        ema: float | None = None,
        drw_epoch: float | None = None,
        classifier_only: bool = False,
        keep_best: str | None = None,
        early_stopping: int | None = None,
        run: Run | None = None,
    ):
        if classifier_only and train_dataset.labels is None:
            raise ValueError("stage: class-balanced batches need the labels in advance; leave out --streaming")
        self.reweighted_loss = None if drw_epoch is None else reweighted_loss(model.config)
        args.ignore_data_skip = True  # the data position is a function of the global step
        args.remove_unused_columns = False
        try:
            super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset)
        except RuntimeError as error:
            if "to be installed" not in str(error):  # a tracker
                raise
            raise ValueError(f"report_to: {error}") from None
        self.augment = compile_if_asked(self.accelerator, self.model, augment)
        self.mean, self.std, self.mixup = mean, std, mixup
        self.layer_decay, self.min_lr, self.warmup_epochs = layer_decay, min_lr, warmup_epochs
        self.momentum, self.adapter = momentum, adapter or Adapter()
        self.drw_epoch, self.classifier_only = drw_epoch, classifier_only
        if ema is not None and self.is_fsdp_enabled:
            raise ValueError("ema: sharded weights (FSDP) cannot be averaged; use one without the other")
        if classifier_only and self.is_fsdp_enabled:
            raise ValueError("stage: classifier retraining does not support FSDP; launch it without")
        self.ema = None if ema is None else WeightAverage(self.model, ema)
        self.run = run or Run(str(args.output_dir), is_main=self.is_world_process_zero())
        self.loss_check = LossCheck(self.accelerator, self.run.folder)
        self._add_callbacks()
        self.best_epoch = None if keep_best is None else BestEpoch(self, keep_best, early_stopping)
        if self.best_epoch is not None:
            self.add_callback(self.best_epoch)

    def _set_loss(self, model: PreTrainedModel) -> None:  # type: ignore[override]
        """Those of the config, which `livt finetune` has written."""
        self.loss = config_loss(model.config)
        check_labels(model.config, self.train_dataset)

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
            if self.momentum is None:
                self.optimizer = adamw(groups, args.learning_rate, (args.adam_beta1, args.adam_beta2))
            else:
                self.optimizer = sgd(groups, args.learning_rate, self.momentum)
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
        with self.averaged_weights():
            outcome = predict_split(model, loader, self.mean, self.std, args.device)
        model.train(was_training)
        if args.world_size > 1:
            parts = gather_object([{name: values[: len(indices)] for name, values in outcome.items()}])
            outcome = {name: np.concatenate([part[name] for part in parts]) for name in outcome}
        arrays = outcome["labels"], outcome["predictions"]
        counts = ordered_class_counts(config)
        accuracy = long_tail_accuracy(*arrays, counts, config.shot_groups)
        values = {name: accuracy[name] for name in ("accuracy", "many", "medium", "few", "macro_accuracy")}
        values |= calibration_error(*arrays, outcome["confidences"])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics


def reweighted_loss(config: Any) -> Loss:
    """The loss of ldam from ``drw_epoch`` on."""
    if config.loss != "ldam":
        raise ValueError(
            f"drw_epoch: deferred re-weighting is for ldam only, and the loss is {config.loss}; leave it out"
        )
    return config_loss(config, class_weights=deferred_weights(ordered_class_counts(config), progress=1.0))
