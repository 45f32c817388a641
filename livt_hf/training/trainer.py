"""BalancedTrainer: a `transformers.Trainer` with the balanced losses and long-tail metrics, for any existing script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from ..class_names import class_names, counts_in_order
from ..losses import Loss, build_loss, logits_of
from ..metrics import calibration_error, long_tail_accuracy
from ..models.configuration_livt import check_not_adjusted, ordered_class_counts, store_class_counts
from ..prior import GROUP_NAMES, ClassPrior, group_definition
from .checkpoint import load_weights
from .label_counts import LABEL_COLUMNS, count_labels


class BalancedTrainer(Trainer):
    """A drop-in `transformers.Trainer` for image classifiers trained on long-tailed data.

        BalancedTrainer(model, args, train_dataset=train, eval_dataset=val, processing_class=processor, loss="bal_bce")

    It takes what a `Trainer` takes, and all of `TrainingArguments` works as documented there. Differences:
        - the loss is one of `livt_hf.losses`, computed from the logits, so that every classifier can have it; labels
          are hard, int64 (B,), or soft, float (B, C), as from mixup;
        - without ``compute_metrics``, evaluation reports ``accuracy``, ``many``, ``medium``, ``few``,
          ``macro_accuracy``, ``ece`` and ``mce`` in percent, each of which can be ``metric_for_best_model``;
        - resuming and ``load_best_model_at_end`` load complete weights. A stock Trainer loads the file directly and
          skips, with a warning, tensors whose names `save_pretrained` has mapped to older ones;
        - class counts and loss are stored in the model's config, so that `livt evaluate` and `livt push` work on what
          `save_model` writes.

    Args:
        model: as for `Trainer`; also a `PeftModel`.
        args, data_collator, train_dataset, eval_dataset, processing_class, trainer_arguments: as for `Trainer`.
        loss: name of a loss, see `livt_hf.losses.build_loss`. ``args.label_smoothing_factor`` applies to hard labels.
        tau: logit-adjustment strength.
        class_counts: training images of each class, ``{name: count}``, matched with the model's ``id2label`` by name,
            or a sequence in label order. By default counted in the training set: its label column (a
            `datasets.Dataset`), ``targets`` (torchvision) or ``labels``; else those in the model's config.

    Raises:
        ValueError: no class counts, or counts that do not fit the model (another number of classes, or other names
            than those of ``id2label``).
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        loss: str = "bal_bce",
        tau: float = 1.0,
        class_counts: Mapping[str, int] | Sequence[int] | None = None,
        **trainer_arguments: Any,
    ):
        if trainer_arguments.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func: BalancedTrainer computes the loss named by loss=; use one without the other"
            )
        args = args or TrainingArguments("tmp_trainer")  # the folder that Trainer chooses
        self._loss_options: dict[str, Any] = {"loss": loss, "tau": tau, "label_smoothing": args.label_smoothing_factor}
        self._given_counts = class_counts
        self.train_dataset, self.args = train_dataset, args  # read while counting, before Trainer sets them
        if model is not None:
            self._set_loss(model)
        if trainer_arguments.get("compute_metrics") is None:
            if args.batch_eval_metrics:
                raise ValueError("batch_eval_metrics: the long-tail metrics need all images; pass compute_metrics")
            trainer_arguments["compute_metrics"] = self.long_tail_metrics
            trainer_arguments.setdefault("preprocess_logits_for_metrics", _only_logits)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **trainer_arguments)
        # The loss is a mean over the micro-batch and must be averaged over accumulation steps, for every model.
        self.model_accepts_loss_kwargs = False
        if args.label_names is None and not self.label_names:  # a model whose forward has no labels
            self.label_names = ["labels"]

    def call_model_init(self, trial: Any = None) -> Any:
        """As upstream; every new model gets the loss and the class counts."""
        model = super().call_model_init(trial)
        self._set_loss(model)
        return model

    def _set_loss(self, model: PreTrainedModel | nn.Module) -> None:
        """Set ``loss`` and ``class_counts`` (in label order), and store them in the model's config, if it has one."""
        config: Any = getattr(model, "config", None)
        self.class_counts = self._counts_of(config)
        options = self._loss_options
        self.loss: Loss = build_loss(options["loss"], self.class_counts, options["tau"], options["label_smoothing"])
        self.shot_groups = group_definition(getattr(config, "shot_groups", None))
        self._check_best_metric()
        if config is not None:
            check_not_adjusted(config)
            store_class_counts(
                config,
                self.class_counts,
                **options,
                shot_groups=self.shot_groups,
                pretrained=getattr(config, "pretrained", None) or getattr(model, "name_or_path", None) or None,
            )

    def _counts_of(self, config: Any) -> dict[str, int]:
        """Class counts in label order: those given, else counted, else those in the config."""
        names = None if config is None else class_names(config)
        counts: Any = self._given_counts
        if counts is None and self.train_dataset is not None:
            counts = count_labels(self.train_dataset, names, (*(self.args.label_names or ()), *LABEL_COLUMNS))
        if counts is None and getattr(config, "class_counts", None) is not None:
            counts = ordered_class_counts(config)
        if counts is None:
            found = "there is no training set to count"
            if self.train_dataset is not None:
                found = f"the training set ({type(self.train_dataset).__name__}) has no label column to count"
            raise ValueError(f"class_counts: {found}; pass class_counts={{name: number of training images}}")
        return dict(counts) if names is None else counts_in_order(counts, names)

    def _check_best_metric(self) -> None:
        """ValueError at once for a group without classes, instead of upstream's error at the first evaluation."""
        metric = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if metric in GROUP_NAMES and not len(ClassPrior(self.class_counts).groups(**self.shot_groups)[metric]):
            raise ValueError(
                f"metric_for_best_model: no class is {metric}-shot by {self.shot_groups}; choose another metric, or "
                "set model.config.shot_groups"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The balanced loss, computed from the logits; labels are not passed to the model."""
        name = self.label_names[0]
        if inputs.get(name) is None:
            raise ValueError(
                f"{name}: the batch has none, only {', '.join(inputs)}; the data collator must return them"
            )
        outputs = model(**{key: value for key, value in inputs.items() if key != name})
        logits = logits_of(outputs)
        loss = self.loss(logits, inputs[name])
        # prediction_step drops the first entry of a tuple, taking it for the loss
        return (loss, outputs if isinstance(outputs, Mapping) else {"logits": logits}) if return_outputs else loss

    def long_tail_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        """The default ``compute_metrics``: accuracies and calibration errors in percent; empty groups are left out."""
        outcome: list[Any] = [evaluated.predictions, evaluated.label_ids]
        if not self.args.eval_do_concat_batches:
            outcome = [np.concatenate(batches) for batches in outcome]
        logits, labels = torch.from_numpy(outcome[0]).float(), outcome[1]  # (N, C) and (N,)
        confidences, predictions = (values.numpy() for values in logits.softmax(-1).max(-1))
        accuracy = long_tail_accuracy(labels, predictions, self.class_counts, self.shot_groups)
        values = {name: accuracy[name] for name in ("accuracy", *GROUP_NAMES, "macro_accuracy")}
        values |= calibration_error(labels, predictions, confidences)
        return {name: value for name, value in values.items() if value is not None}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load through `from_pretrained`, see `load_weights`."""
        model = self.model if model is None else model
        if self._has_native_checkpoints(model):
            load_weights(model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load through `from_pretrained`, see `load_weights`."""
        if self.state.best_model_checkpoint and self._has_native_checkpoints(self.model):
            load_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _has_native_checkpoints(self, model: Any) -> TypeGuard[PreTrainedModel]:
        """Whether `save_pretrained` writes all weights: not those of adapters and of sharded engines."""
        has_adapter = getattr(model, "_hf_peft_config_loaded", False)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return isinstance(model, PreTrainedModel) and not has_adapter and not sharded


def _only_logits(outputs: Any, labels: Any) -> Tensor:
    """The first of several outputs (attentions, hidden states), so that evaluation keeps no others in memory."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
