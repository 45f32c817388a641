"""Balanced fine-tuning (BFT; LiVT Algorithm 1, lines 10 to 20): a Trainer with the paper's recipe.

Official counterparts: `main_finetune.py`, `engine_finetune.py`. The loss is the one that the model's config names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..config.arguments import FinetuneArguments
from ..data import (
    EvalTransform,
    FinetuneTransform,
    ImageDataset,
    Mixup,
    TrainingBatches,
    class_counts,
    load_long_tailed,
)
from ..data.streaming import open_stream, training_dataset
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_processor
from ..evaluation.evaluate import evaluate_model, mistaken_images
from ..files import RUN_FILE, explain_failed_write, publish_files, write_text
from ..models.configuration_livt import LivtConfig, encoder_sizes, store_class_counts, unused_sizes
from ..models.loading import has_drop_path, load_classifier, load_config, load_pretrained_classifier, saved_statistics
from ..models.modeling_livt import ViTForBalancedClassification, config_for_classes
from ..optimization import schedule_length
from ..prior import ClassPrior
from ..reporting.card import write_model_card
from ..reporting.evaluation_report import write_report
from .checkpoint import find_resume_checkpoint
from .classifier_retraining import fold_scales, train_classifier_only
from .run import (
    check_continues,
    check_keeps,
    check_precision,
    describe_world,
    finished_steps,
    read_record,
    run_record,
    start_pusher,
)
from .trainer import BalancedTrainer


def finetune(args: FinetuneArguments, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Fine-tune a classifier, evaluate it, and save it with its card and report in ``args.output_dir``.

    Args:
        more: further fields of `TrainingArguments`.

    Returns:
        The results on the test split (or the validation split if there is none, or None if there is neither). None also
        if the run was stopped by a signal before its end (it has saved a checkpoint).

    Raises:
        ValueError: options or data that cannot work, or a loss that is not finite.
    """
    args.require("dataset", "output_dir")
    output_dir = Path(args.output_dir)
    set_seed(args.seed)
    if args.streaming:
        splits, images = DatasetDict(), open_stream(args)
        counts = images.class_counts
    else:
        splits = load_long_tailed(args.dataset, **args.data_options())
        images = splits["train"]
        counts = class_counts(images)
    model = build_classifier(args, counts)
    mean, std = pixel_statistics(args)
    ClassPrior(counts).groups(**args.shot_groups())  # an impossible definition is told now, not after the training
    size = model.config.image_size
    transform = FinetuneTransform(
        size,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
        rand_augment=None if args.rand_augment == "none" else args.rand_augment,
        random_erasing=args.random_erasing,
        mean=tuple(mean),
    )
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    train_set = training_dataset(args, images, transform, world, rank)
    batches = TrainingBatches(len(images), args.batch_size, args.gradient_accumulation_steps, world)
    steps, epochs, warmup_epochs = schedule_length(
        batches.steps_per_epoch, args.epochs, args.warmup_epochs, args.max_steps
    )
    watched = splits.get(args.eval_split)
    training_args = TrainingArguments(
        **{
            "output_dir": str(output_dir),
            "seed": args.seed,
            "per_device_train_batch_size": args.batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "max_steps": steps,
            "learning_rate": args.base_lr * batches.global_batch_size / 256,
            "weight_decay": args.weight_decay,
            "adam_beta1": args.betas[0],
            "adam_beta2": args.betas[1],
            "max_grad_norm": 0.0,
            "logging_steps": args.logging_steps,
            "logging_nan_inf_filter": False,
            "save_steps": args.save_every,
            "save_total_limit": args.save_total_limit,
            "eval_strategy": "no" if watched is None else "steps",
            "eval_steps": args.eval_every * batches.steps_per_epoch,
            "dataloader_num_workers": args.num_workers,
            "ddp_find_unused_parameters": False,
            "report_to": "none",
            **_device_options(args.mixed_precision),
            **(more or {}),
        }
    )
    trainer = BalancedTrainer(
        model,
        training_args,
        train_dataset=train_set,
        eval_dataset=None if watched is None else ImageDataset(watched, EvalTransform(size, args.crop_ratio)),
        mean=mean,
        std=std,
        layer_decay=args.layer_decay,
        min_lr=args.min_lr,
        warmup_epochs=warmup_epochs,
        ema=args.ema,
        classifier_only=args.stage == "classifier",
        # --max_steps shortens the schedule, and this with it
        drw_epoch=None if args.drw_epoch is None else args.drw_epoch * epochs / args.epochs,
        mixup=Mixup(
            len(counts),
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            label_smoothing=args.label_smoothing,
            seed=args.seed,
        )
        if args.mixes
        else None,
    )
    say = trainer.accelerator.print
    if finished_steps(output_dir, args, more) == steps:
        unmeasured = {"test", "validation"} & set(splits) and not (output_dir / "results.json").exists()
        say(
            f"{output_dir} holds this run, finished after {steps} steps; "
            + ("it is only evaluated" if unmeasured else "nothing to do")
        )
        if unmeasured and trainer.is_world_process_zero():
            _evaluate(*load_classifier(output_dir), args, splits)
        trainer.accelerator.wait_for_everyone()
        return _saved_results(output_dir)
    checkpoint, skipped = find_resume_checkpoint(output_dir, args.resume)
    for line in skipped:
        say(line)
    check_keeps(output_dir, args, steps, checkpoint, more)
    if checkpoint is not None:
        record, state = read_record(checkpoint, RUN_FILE), read_record(checkpoint, TRAINER_STATE_NAME)
        for line in check_continues(record, args, state["global_step"], steps, more):
            say(f"resuming with another {line}")
    say(
        f"fine-tuning {model.num_parameters() / 1e6:.2f} M parameters with {args.loss} (tau {args.tau}) on "
        f"{len(images)} images of {model.config.num_labels} classes at {size} px: {steps} steps of "
        f"{batches.global_batch_size} images ({steps / batches.steps_per_epoch:.4g} epochs), peak learning rate "
        f"{training_args.learning_rate:.3g}; {describe_world(trainer.accelerator)}"
        + (f"; resumed from {checkpoint}" if checkpoint else "")
    )
    if unused := unused_sizes(args, model.config):
        say(unused)
    if args.drop_path and not has_drop_path(model.config):
        say(f"drop_path: {type(model).__name__} has none; --drop_path {args.drop_path} has no effect")
    trainer.run_record = run_record(args, steps, more)
    processor = image_processor(size, args.crop_ratio, mean, std)
    if trainer.is_world_process_zero():
        trainer.pusher = start_pusher(args, processor)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopped_by:
        if trainer.pusher:
            trainer.pusher.stop()
        say(
            f"stopped by {trainer.stopped_by} after step {trainer.state.global_step} of {steps}; the same command "
            "continues the run"
        )
        return None
    results = None
    trained = trainer.whole_model()
    if trainer.is_world_process_zero():
        if trainer.ema is not None:
            trained.load_state_dict(trainer.ema.weights)
        fold_scales(trained)
        results = _save_model(trained, processor, args, splits, trainer.run_record)
    trainer.accelerator.wait_for_everyone()
    say(f"saved the fine-tuned model in {output_dir}")
    if trainer.pusher and (error := trainer.pusher.finish(output_dir)):
        say(error)
    return results


def build_classifier(args: FinetuneArguments, counts: dict[str, int]) -> PreTrainedModel:
    """The model that the options describe: from scratch, on a masked autoencoder, or on any image classifier."""
    settings: dict[str, Any] = {
        "loss": args.loss,
        "tau": args.tau,
        "label_smoothing": args.label_smoothing,
        "shot_groups": args.shot_groups(),
    }
    if args.pretrained == "none":
        config = LivtConfig(
            **encoder_sizes(args),
            **config_for_classes(counts),
            **settings,
            drop_path_rate=args.drop_path,
            use_mean_pooling=args.pooling == "mean",
            image_size=args.image_size or 224,
            patch_size=args.patch_size,
        )
        return ViTForBalancedClassification(config)
    if load_config(args.pretrained).model_type == "vit_mae":
        if args.stage == "classifier":
            raise ValueError(
                f"stage: {args.pretrained!r} is a masked autoencoder, and the stage 'classifier' retrains the last "
                "layer of a trained classifier; give its folder with --pretrained"
            )
        settings |= {"drop_path_rate": args.drop_path, "use_mean_pooling": args.pooling == "mean"}
        if args.image_size is not None:
            settings["image_size"] = args.image_size
        return ViTForBalancedClassification.from_mae(args.pretrained, counts, **settings)
    if args.pooling == "cls":
        raise ValueError(f"pooling: {args.pretrained!r} is a trained classifier and keeps what it reads; leave it out")
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


def pixel_statistics(args: FinetuneArguments) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for normalization: those asked for, of the pretrained model, or ImageNet's."""
    saved = None if args.pretrained == "none" else saved_statistics(args.pretrained)
    mean, std = saved or (list(IMAGENET_MEAN), list(IMAGENET_STD))
    return args.mean or mean, args.std or std


def _device_options(mixed_precision: str | None) -> dict[str, bool]:
    """What Trainer has to be told of the device: it takes bf16 on a CPU for a mistake unless the CPU was asked for."""
    mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    check_precision(mixed_precision)
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return {
        "use_cpu": wants_cpu or not torch.accelerator.is_available(),
        "bf16": mixed_precision == "bf16",
        "fp16": mixed_precision == "fp16",
    }


def _save_model(
    model: PreTrainedModel, processor: Any, args: FinetuneArguments, splits: DatasetDict, record: dict[str, Any]
) -> dict[str, Any] | None:
    """Model and image processor in the output folder, and then what was measured of them."""
    output_dir = Path(args.output_dir)
    with explain_failed_write(output_dir), publish_files(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (output_dir / "results.json").unlink(missing_ok=True)  # it is of the model before this one
        write_text(folder / RUN_FILE, json.dumps(record, indent=2))
    return _evaluate(model, processor, args, splits)


def _evaluate(
    model: PreTrainedModel, processor: Any, args: FinetuneArguments, splits: DatasetDict
) -> dict[str, Any] | None:
    """Results, report and card of the saved model in the output folder."""
    output_dir = Path(args.output_dir)
    split: Dataset | None = splits.get("test", splits.get("validation"))
    if split is None:
        print(f"{args.dataset} has neither a test nor a validation split: nothing is evaluated")
        return None
    description = {
        "model": str(output_dir),
        "dataset": args.dataset,
        "split": "test" if "test" in splits else "validation",
        "seed": args.seed,
    }
    try:
        results = evaluate_model(model, split, processor, num_workers=args.num_workers, description=description)
    except ValueError as error:
        raise ValueError(
            f"{error}; the trained model is saved in {output_dir}, and the same command then evaluates it"
        ) from error
    write_report(results, output_dir, mistaken_images(results, split))
    write_model_card(output_dir, results, repo_id=args.hub_model_id)
    return results


def _saved_results(output_dir: Path) -> dict[str, Any] | None:
    file = output_dir / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
