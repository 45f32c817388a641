"""Balanced fine-tuning (BFT; LiVT Algorithm 1, lines 10 to 20): data, classifier, training, evaluation, publication.

Official counterparts: `main_finetune.py`, `engine_finetune.py`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import DatasetDict
from transformers import PreTrainedModel, TrainingArguments

from ..config.arguments import ClassifierArguments, FinetuneArguments, FinetuneAugmentationArguments
from ..data import EvalTransform, FinetuneTransform, ImageDataset, Mixup
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_processor
from ..evaluation.evaluate import describe_unevaluated, evaluate_model, mistaken_images
from ..evaluation.splits import has_evaluation_split, log_coverage, split_coverage, split_to_evaluate
from ..models.compilation import check_compiler
from ..models.configuration_livt import LivtConfig, encoder_sizes, store_class_counts, unused_sizes
from ..models.loading import enable_gradient_checkpointing, load_classifier, load_config
from ..models.modeling_livt import ViTForBalancedClassification, config_for_classes
from ..models.transfer import has_drop_path, load_pretrained_classifier, saved_statistics
from ..optimization import Schedule
from ..prior import ClassPrior
from ..reporting.blocks import counted
from ..reporting.card import write_model_card
from ..reporting.evaluation_report import write_report
from ..reporting.training_report import write_training_report
from .classifier_retraining import train_classifier_only
from .data import TrainingData, load_images, plan_schedule, training_data
from .run import StageRun, check_precision
from .trainer import BalancedTrainer

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
    images = load_images(args, args.seed, run.world)
    splits, counts = images.splits, images.class_counts
    ClassPrior(counts).groups(**args.shot_groups())  # fail fast on an invalid group definition
    model = build_classifier(args, counts, args.shot_groups())
    mean, std = pixel_statistics(args.pretrained, args.mean, args.std)
    transform = augmentation(args, model.config.image_size, mean)
    data = training_data(images, transform, run, args.batch_size, args.gradient_accumulation_steps)
    schedule = plan_schedule(args, data.batches)
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    trainer = build_trainer(args, model, data, schedule, mean, std, run)
    settings: dict[str, Any] = {"dataset": args.dataset, "seed": args.seed, "num_workers": args.num_workers}
    evaluate: Callable[..., Any] = partial(evaluate_run, run.folder, splits, **settings, repo_id=args.hub_model_id)
    if run.is_finished(schedule.steps, "evaluation is missing" if is_unevaluated(run, splits) else "nothing to do"):
        return finished_results(run, evaluate, splits, trainer.accelerator)
    checkpoint = run.find_checkpoint(schedule.steps)
    processor = image_processor(model.config.image_size, args.crop_ratio, mean, std)
    if splits:
        log_coverage(split_coverage(splits, counts))
        if not has_evaluation_split(splits):
            logger.info(
                f"{args.dataset} has neither a test nor a validation split: nothing is evaluated; --val_fraction 0.1 "
                "holds out a tenth of the training images for it"
            )
    run.start(describe(model, data.num_images), schedule, processor, trainer.accelerator, checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopped_by:
        run.stopped(trainer.stopped_by, trainer.state.global_step)
        return None
    trained, results = trainer.final_model(), None
    if run.is_main:
        run.save(trained)
        results = evaluate(trained, processor)
    run.publish(trainer.accelerator)
    return results


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


def build_trainer(
    args: FinetuneArguments,
    model: PreTrainedModel,
    data: TrainingData,
    schedule: Schedule,
    mean: Sequence[float],
    std: Sequence[float],
    run: StageRun,
) -> BalancedTrainer:
    """Build the trainer from the arguments."""
    config: Any = model.config
    eval_split = data.splits.get(args.eval_split)
    eval_transform = EvalTransform(config.image_size, args.crop_ratio)
    return BalancedTrainer(
        model,
        trainer_arguments(args, schedule, "no" if eval_split is None else "steps", run.training_arguments),
        train_dataset=data.dataset,
        eval_dataset=None if eval_split is None else ImageDataset(eval_split, eval_transform),
        mean=mean,
        std=std,
        layer_decay=args.layer_decay,
        min_lr=args.min_lr,
        warmup_epochs=schedule.warmup_epochs,
        ema=args.ema,
        classifier_only=args.stage == "classifier",
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
    return (
        f"fine-tuning {model.num_parameters() / 1e6:.2f} M parameters with {config.loss} (tau {config.tau}) on "
        f"{counted(num_images, 'image')} of {config.num_labels} classes at {config.image_size} px"
    )


def build_classifier(args: ClassifierArguments, counts: dict[str, int], shot_groups: dict[str, Any]) -> PreTrainedModel:
    """Build the model from the arguments: from scratch, from a masked autoencoder, or from any image classifier."""
    settings: dict[str, Any] = {
        "loss": args.loss,
        "tau": args.tau,
        "label_smoothing": args.label_smoothing,
        "shot_groups": shot_groups,
    }
    if args.pretrained == "none":
        config = LivtConfig(
            **encoder_sizes(args.model_size, args.given_sizes()),
            **config_for_classes(counts),
            **settings,
            drop_path_rate=args.drop_path,
            use_mean_pooling=args.pooling == "mean",
            image_size=args.image_size or 224,
            patch_size=args.patch_size,
        )
        return ViTForBalancedClassification(config)
    if load_config(args.pretrained).model_type == "vit_mae":
        model = _on_autoencoder(args, counts, settings)
    else:
        model = _from_classifier(args, counts, settings)
    if unused := unused_sizes(args.given_sizes(), model.config, args.pretrained):
        logger.info(unused)
    if args.drop_path and not has_drop_path(model.config):
        logger.info(f"drop_path: {type(model).__name__} does not have it; --drop_path {args.drop_path} has no effect")
    return model


def _on_autoencoder(args: ClassifierArguments, counts: dict[str, int], settings: dict[str, Any]) -> PreTrainedModel:
    if args.stage == "classifier":
        raise ValueError(
            f"stage: {args.pretrained!r} is a masked autoencoder, but --stage classifier retrains the last layer "
            "of a trained classifier; give one with --pretrained"
        )
    settings |= {"drop_path_rate": args.drop_path, "use_mean_pooling": args.pooling == "mean"}
    if args.image_size is not None:
        settings["image_size"] = args.image_size
    return ViTForBalancedClassification.from_mae(args.pretrained, counts, **settings)


def _from_classifier(args: ClassifierArguments, counts: dict[str, int], settings: dict[str, Any]) -> PreTrainedModel:
    if args.pooling == "cls":
        raise ValueError(f"pooling: {args.pretrained!r} is a trained classifier and keeps its pooling; leave it out")
    model = load_pretrained_classifier(
        args.pretrained,
        counts,
        image_size=args.image_size,
        drop_path=args.drop_path,
        ignore_mismatched_classifier=args.ignore_mismatched_classifier,
    )
    balanced = args.stage == "classifier"
    store_class_counts(model.config, counts, **settings, pretrained=args.pretrained, class_balanced_batches=balanced)
    if balanced:
        train_classifier_only(model, args.classifier_method)
    return model


def pixel_statistics(
    pretrained: str, mean: list[float] | None = None, std: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: those given, else the pretrained model's, else ImageNet's."""
    saved = None if pretrained == "none" else saved_statistics(pretrained)
    saved_mean, saved_std = saved or (list(IMAGENET_MEAN), list(IMAGENET_STD))
    return mean or saved_mean, std or saved_std


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


def is_unevaluated(run: StageRun, splits: DatasetDict) -> bool:
    """Whether a run with a split to evaluate on has no results."""
    return has_evaluation_split(splits) and not (run.folder / "results.json").exists()


def finished_results(
    run: StageRun, evaluate: Callable[..., Any], splits: DatasetDict, accelerator: Accelerator
) -> dict[str, Any] | None:
    """Results of a finished run; evaluates it if they are missing."""
    if is_unevaluated(run, splits) and run.is_main:
        evaluate(*load_classifier(run.folder))
    accelerator.wait_for_everyone()
    file = run.folder / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@torch.compiler.set_stance("force_eager")  # a model that was compiled for training
def evaluate_run(
    output_dir: Path,
    splits: DatasetDict,
    model: PreTrainedModel,
    processor: Any,
    *,
    dataset: str,
    seed: int,
    num_workers: int,
    repo_id: str | None,
) -> dict[str, Any] | None:
    """Evaluate the model in the output folder, and write results, report and card there.

    Without a split to evaluate on, report and card say so.

    Returns:
        Results on the test split, or on the validation split if there is no test split; None without either.
    """
    description = {"model": str(output_dir), "dataset": dataset, "seed": seed}
    if not has_evaluation_split(splits):
        if not splits:
            logger.info(f"--streaming reads training images only; evaluate with `livt evaluate --model {output_dir}`")
        unevaluated = describe_unevaluated(model, description, splits)
        write_training_report(output_dir, unevaluated)
        write_model_card(output_dir, unevaluated, repo_id=repo_id)
        return None
    name = split_to_evaluate(splits, dataset)
    split, description["split"] = splits[name], name
    try:
        results = evaluate_model(
            model, split, processor, num_workers=num_workers, description=description, splits=splits
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; the trained model is saved in {output_dir}; repeat the command to evaluate it"
        ) from error
    write_report(results, output_dir, mistaken_images(results, split))
    write_model_card(output_dir, results, repo_id=repo_id)
    return results
