"""Balanced fine-tuning (BFT; LiVT Algorithm 1, lines 10 to 20): data, classifier, training, evaluation, publication.

Official counterparts: `main_finetune.py`, `engine_finetune.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers import PreTrainedModel, TrainingArguments

from ..config.arguments import AdapterArguments, FinetuneArguments, FinetuneAugmentationArguments
from ..data import EvalTransform, FinetuneTransform, ImageDataset, Mixup
from ..data.long_tail import dataset_labels
from ..data.transforms import image_processor
from ..evaluation.evaluate import describe_unevaluated, evaluate_model, mistaken_images
from ..evaluation.splits import has_evaluation_split, log_coverage, split_coverage, split_to_evaluate
from ..files import RUN_FILE, read_json
from ..losses import loss_words
from ..models.adapters import Adapter, add_adapter
from ..models.compilation import check_compiler
from ..models.loading import enable_gradient_checkpointing, load_classifier
from ..optimization import Schedule
from ..prior import ClassPrior
from ..reporting.blocks import counted, rounded
from ..reporting.card import write_model_card
from ..reporting.evaluation_report import write_report
from ..reporting.training_report import write_training_report
from .best_epoch import best_record, remove_best
from .classifier import build_classifier, pixel_statistics
from .classifier_init import init_classifier
from .data import TrainingData, load_images, plan_schedule, training_data
from .recipe_trainer import RecipeTrainer
from .stage_run import StageRun, check_precision
from .stopping import StopSignal

logger = logging.getLogger(__name__)


def finetune(args: FinetuneArguments, training_arguments: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Fine-tune a classifier, evaluate it, and save it with its card and report in ``args.output_dir``.

    Args:
        training_arguments: further fields of `TrainingArguments`.

    Returns:
        Results on the test split, or on the validation split if there is no test split; None without either, or if a
        signal stopped the run (after saving a checkpoint).

    Raises:
        ValueError: invalid options or data, or a non-finite loss.
    """
    run = StageRun(args, training_arguments=training_arguments)
    with run.opened():
        for given, names in args.without_effect().items() if run.is_main else ():
            logger.warning(f"{', '.join(names)}: no effect with {given}")
        if args.stage == "probe":
            from .probing import probe  # it evaluates and writes as this module does

            return probe(args, run)
        return _finetune(args, run)


def _finetune(args: FinetuneArguments, run: StageRun) -> dict[str, Any] | None:
    images = load_images(args, args.seed, run.world, evaluation=True)
    splits, counts = images.splits, images.class_counts
    ClassPrior(counts).groups(**args.shot_groups())  # fail fast on an invalid group definition
    if args.keep_best:
        check_keep_best(args.keep_best, splits, counts, args.shot_groups())
    model = build_classifier(args, counts, args.shot_groups())
    mean, std = pixel_statistics(args.pretrained, args.mean, args.std)
    transform = augmentation(args, model.config.image_size, mean)
    data = training_data(images, transform, run, args.batch_size, args.gradient_accumulation_steps)
    schedule = plan_schedule(args, data.batches)
    run.results = ("results.json", "README.md") if has_evaluation_split(splits) else ("README.md",)
    processor = image_processor(model.config.image_size, args.crop_ratio, mean, std)
    is_trained = run.is_trained(schedule.steps)
    checkpoint = None if is_trained else run.find_checkpoint(schedule.steps)
    if not is_trained and checkpoint is None:
        init_classifier(args, model, images, processor)  # before anything takes a copy of the weights
    add_adapter(model, adapter_of(args))
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    trained_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trained: PreTrainedModel | None = None
    trainer = build_trainer(args, model, data, schedule, mean, std, run)
    if not is_trained:
        if splits:
            log_coverage(split_coverage(splits, counts))
        if not has_evaluation_split(splits):
            hint = "" if args.streaming else "; --val_fraction 0.1 holds out a tenth of the training images for it"
            logger.info(f"{args.dataset} has neither a test nor a validation split: nothing is evaluated{hint}")
        run.start(describe(model, data.num_images), schedule, processor, trainer.accelerator, checkpoint)
        run.record["trained_parameters"] = trained_parameters
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.stopped_by:
            run.stopped(trainer.stopped_by, trainer.state.global_step)
            return None
        trained = trainer.final_model()
        if run.is_main:
            if args.keep_best and (kept := best_record(run.folder)):
                if trainer.state.global_step < schedule.steps:
                    kept["stopped_at"] = trainer.state.global_step  # by --early_stopping
                run.record["kept"] = kept
                value = f"{kept['metric']} {kept['value']:.1f} % on the validation split"
                logger.info(f"keeping the weights of epoch {rounded(kept['epoch'])}: {value}")
            run.save(trained)
    if run.is_main:
        remove_best(run.folder)
        with StopSignal(run.saved, at_once=True):
            write_results(args, run, splits, trained, processor)
    run.publish(trainer.accelerator)
    return read_json(run.folder, "results.json") if "results.json" in run.results else None


def adapter_of(args: AdapterArguments) -> Adapter:
    """The adapter that the options describe."""
    targets = tuple(args.adapter_targets)
    return Adapter(args.adapter, args.adapter_rank, args.adapter_alpha, args.adapter_dropout, targets)


def augmentation(args: FinetuneAugmentationArguments, image_size: int, mean: Sequence[float]) -> FinetuneTransform:
    """The augmentation of training images; ``mean`` is the fill color of RandAugment."""
    return FinetuneTransform(
        image_size,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
        rand_augment=None if args.rand_augment == "none" else args.rand_augment,
        random_erasing=args.random_erasing,
        mean=tuple(mean),
    )


def build_mixup(
    args: FinetuneAugmentationArguments, num_classes: int, label_smoothing: float, seed: int
) -> Mixup | None:
    """MixUp and CutMix, if one of them is enabled."""
    if not args.mixes:
        return None
    return Mixup(
        num_classes,
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        label_smoothing=label_smoothing,
        seed=seed,
    )


def check_keep_best(metric: str, splits: DatasetDict, counts: dict[str, int], groups: dict[str, Any]) -> None:
    """ValueError unless the validation images can choose an epoch by this accuracy."""
    if "validation" not in splits:
        raise ValueError("keep_best: the dataset has no validation split to choose the epoch on; see --val_fraction")
    group = ClassPrior(counts).groups(**groups).get(metric)
    if group is not None and not np.isin(dataset_labels(splits["validation"]), group).any():
        raise ValueError(
            f"keep_best: no validation image is of a {metric}-shot class; choose the epoch by accuracy or macro, or "
            "change --many, --few or --group_by"
        )


def build_trainer(
    args: FinetuneArguments,
    model: PreTrainedModel,
    data: TrainingData,
    schedule: Schedule,
    mean: Sequence[float],
    std: Sequence[float],
    run: StageRun,
) -> RecipeTrainer:
    """Build the trainer from the arguments."""
    config: Any = model.config
    eval_split = data.splits.get(args.eval_split)
    eval_transform = EvalTransform(config.image_size, args.crop_ratio)
    return RecipeTrainer(
        model,
        trainer_arguments(args, schedule, "no" if eval_split is None else "steps", run.training_arguments),
        train_dataset=data.dataset,
        eval_dataset=None if eval_split is None else ImageDataset(eval_split, eval_transform),
        mean=mean,
        std=std,
        layer_decay=args.layer_decay,
        momentum=args.momentum if args.optimizer == "sgd" else None,
        adapter=adapter_of(args),
        min_lr=args.min_lr,
        warmup_epochs=schedule.warmup_epochs,
        ema=args.ema,
        classifier_only=args.stage == "classifier",
        keep_best=args.keep_best,
        early_stopping=args.early_stopping,
        # --max_steps shortens the schedule, and this with it
        drw_epoch=None if args.drw_epoch is None else args.drw_epoch * schedule.epochs / args.epochs,
        mixup=build_mixup(args, config.num_labels, args.label_smoothing, args.seed),
        run=run,
    )


def trainer_arguments(
    args: FinetuneArguments, schedule: Schedule, eval_strategy: str, training_arguments: dict[str, Any]
) -> TrainingArguments:
    """The options under their names in `TrainingArguments`; fields given there directly take precedence.

    Raises:
        ValueError: a field is refused.
    """
    values = {
        "output_dir": args.output_dir,
        "seed": args.seed,
        "per_device_train_batch_size": args.batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "max_steps": schedule.steps,
        "learning_rate": schedule.peak_lr,
        "weight_decay": args.weight_decay,
        "adam_beta1": args.betas[0],
        "adam_beta2": args.betas[1],
        "max_grad_norm": 0.0,
        "logging_steps": args.logging_steps,
        "logging_nan_inf_filter": False,
        "save_steps": args.save_every,
        "save_total_limit": args.save_total_limit,
        "eval_strategy": eval_strategy,
        "eval_steps": args.eval_every * schedule.steps_per_epoch,
        "dataloader_num_workers": args.num_workers,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "torch_compile": args.compile,
        **_device_options(args.mixed_precision),
        **training_arguments,
    }
    check_compiler(values.get("torch_compile_backend"), values.get("torch_compile_mode"))
    try:
        arguments = TrainingArguments(**values)
    except Exception as error:  # of many kinds: each field has its own checks, some of them in other libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"one of the options of TrainingArguments is refused: {reason}") from error
    # As in pretraining; afterwards, because TrainingArguments turn TF32 on where the model is compiled.
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return arguments


def describe(model: PreTrainedModel, num_images: int) -> str:
    """Model, loss and data in words, for the log."""
    config: Any = model.config
    trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
    return (
        f"fine-tuning {trained:,} of {total:,} parameters with {loss_words(config.loss, config.tau)} on "
        f"{counted(num_images, 'image')} of {config.num_labels} classes at {config.image_size} px"
    )


def _device_options(mixed_precision: str | None) -> dict[str, bool]:
    """Device and precision for TrainingArguments, which refuse bf16 on a CPU without ``use_cpu``."""
    mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    check_precision(mixed_precision)
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return {
        "use_cpu": use_cpu or not torch.accelerator.is_available(),
        "bf16": mixed_precision == "bf16",
        "fp16": mixed_precision == "fp16",
    }


@torch.compiler.set_stance("force_eager")  # a model that was compiled for training
def write_results(
    args: FinetuneArguments, run: StageRun, splits: DatasetDict, model: PreTrainedModel | None, processor: Any
) -> None:
    """Write what the run owes of results, report and card. Evaluated is the test split, else the validation split.

    Without a split to evaluate on, report and card say so.

    Args:
        model: the trained model; None loads it.
    """
    owed = run.owed()
    description = {"model": str(run.folder), "dataset": args.dataset, "seed": args.seed}
    record = read_json(run.folder, RUN_FILE)
    kept = ("kept", "trained_parameters", "probe", "knn")
    description |= {name: record[name] for name in kept if name in record}
    description["adapter"] = None if args.adapter == "none" else args.adapter
    if not {"results.json", "README.md"} & set(owed):
        return
    if "results.json" not in run.results:
        model = model or load_classifier(run.folder)[0]
        results = describe_unevaluated(model, description, splits)
        write_training_report(run.folder, results)
    elif "results.json" in owed:
        if model is None:
            model, processor = load_classifier(run.folder)
        name = split_to_evaluate(splits, args.dataset)
        options = {"num_workers": args.num_workers, "description": {**description, "split": name}, "splits": splits}
        try:
            results = evaluate_model(model, splits[name], processor, output_dir=run.folder, **options)
        except ValueError as error:
            raise ValueError(
                f"{error}; the trained model is saved in {run.folder}; repeat the command to evaluate it"
            ) from error
        write_report(results, run.folder, mistaken_images(results, splits[name]))
    else:
        results = read_json(run.folder, "results.json")
    write_model_card(run.folder, results, repo_id=args.hub_model_id)
