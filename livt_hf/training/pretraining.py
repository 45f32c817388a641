"""Masked generative pretraining (MGP; LiVT Algorithm 1, lines 1 to 9): data, autoencoder, training, publication.

The images' labels are not used in training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from ..config.arguments import AutoencoderArguments, PretrainArguments
from ..config.groups import AugmentationArguments
from ..data import PretrainTransform
from ..data.transforms import image_processor
from ..files import explain_failed_write
from ..models.compilation import check_compiler
from ..models.configuration_livt import LivtMAEConfig, check_width, encoder_sizes, other_image_size, unused_sizes
from ..models.loading import enable_gradient_checkpointing, load_model
from ..models.modeling_livt import interpolate_position_embeddings
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from ..optimization import Schedule
from ..reporting.blocks import counted
from ..reporting.card import write_autoencoder_card
from ..reporting.provenance import command_line, hardware, versions
from ..reporting.training_report import write_training_report
from .data import TrainingData, load_images, plan_schedule, training_data
from .monitor import Monitor
from .pretraining_loop import PretrainingLoop
from .stage_run import StageRun, check_precision

logger = logging.getLogger(__name__)

NO_ACCURACY = "A masked autoencoder has no accuracy: fine-tune it with labels, and evaluate the classifier."


def pretrain(args: PretrainArguments) -> Path | None:
    """Pretrain a masked autoencoder and save it in ``args.output_dir``.

    Returns:
        The output folder, or None if a signal stopped the run (after saving a checkpoint).

    Raises:
        ValueError: invalid options or data, or a non-finite loss.
    """
    run = StageRun(args)
    with run.opened():
        # Joins the other processes, so that all of them read the folder after it is locked.
        accelerator = build_accelerator(args.mixed_precision, args.log_with, args.output_dir, args.tf32)
        return _pretrain(args, run, accelerator)


def _pretrain(args: PretrainArguments, run: StageRun, accelerator: Accelerator) -> Path | None:
    run.results = ("README.md",)
    model = build_autoencoder(args)
    size = model.config.image_size
    images, transform = load_images(args, args.seed, run.world), masking_transform(args, size, model.config.patch_size)
    data = training_data(images, transform, run, args.batch_size, args.gradient_accumulation_steps)
    schedule = plan_schedule(args, data.batches)
    if not run.is_trained(schedule.steps) and not _train(args, run, accelerator, model, data, schedule):
        return None
    if run.is_main and "README.md" in run.owed():
        machine = hardware(accelerator.device)
        named: dict[str, Any] = {"model": run.folder.resolve().name, "dataset": args.dataset, "command": command_line()}
        described = {**named, "hardware": machine, "versions": versions()}
        with explain_failed_write(run.folder):
            write_training_report(run.folder, described, NO_ACCURACY)
            write_autoencoder_card(run.folder, repo_id=args.hub_model_id, images=data.num_images, hardware=machine)
    run.publish(accelerator)
    return run.folder


def _train(
    args: PretrainArguments,
    run: StageRun,
    accelerator: Accelerator,
    model: LivtMAEForPreTraining,
    data: TrainingData,
    schedule: Schedule,
) -> bool:
    """Train and save the model; False if a signal stopped it."""
    checkpoint = run.find_checkpoint(schedule.steps)
    loop = build_loop(args, run, accelerator, model, data, schedule, checkpoint)
    size = model.config.image_size
    what = (
        f"pretraining {loop.unwrapped.num_parameters() / 1e6:.2f} M parameters on {counted(data.num_images, 'image')}"
    )
    processor = image_processor(size, 0.875, args.mean, args.std)
    run.start(f"{what} at {size} px", schedule, processor, accelerator, checkpoint)
    data.batches.start_step, data.batches.stop_step = loop.step, schedule.steps
    stopped_by = loop.train(data.dataset.loader(data.batches, args.num_workers, accelerator.device.type == "cuda"))
    if stopped_by:
        run.stopped(stopped_by, loop.step)
        return False
    weights = loop.whole_weights()
    if run.is_main:
        run.save(loop.unwrapped, weights)
    return True


def build_accelerator(
    mixed_precision: str | None, trackers: Sequence[str], project_dir: str, tf32: bool
) -> Accelerator:
    """The Accelerator as configured by `accelerate launch`, overridden by the options.

    Raises:
        ValueError: a tracker is unknown or not installed, the device does not support the precision, or Accelerate's
            settings of the compiler are unknown.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in available:
            raise ValueError(
                f"log_with: {tracker!r} is not installed; install it, or use one of: {', '.join(available) or 'none'}"
            )
    check_precision(mixed_precision)
    check_compiler()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # As `TrainingArguments` do: otherwise the precision of an earlier run in the same process would stay.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=project_dir,
    )


def masking_transform(args: AugmentationArguments, image_size: int, patch_size: int) -> PretrainTransform:
    """Random crops, and the noise that selects the masked patches."""
    num_patches = (image_size // patch_size) ** 2
    return PretrainTransform(
        image_size,
        num_patches=num_patches,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
    )


def build_loop(
    args: PretrainArguments,
    run: StageRun,
    accelerator: Accelerator,
    model: LivtMAEForPreTraining,
    data: TrainingData,
    schedule: Schedule,
    checkpoint: Path | None,
) -> PretrainingLoop:
    """The training loop with its monitor and trackers, resumed from the checkpoint if there is one."""
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    monitor = Monitor(
        accelerator,
        run.folder,
        data.splits,
        model.config.image_size,
        picture_every=args.picture_every,
        probe_every=args.probe_every,
        steps_per_epoch=schedule.steps_per_epoch,
        shot_groups=args.shot_groups(),
        mean=args.mean,
        std=args.std,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        max_bad_images=args.max_bad_images,
    )
    if args.log_with:
        scalars = {name: v if isinstance(v, int | float | str) else str(v) for name, v in vars(args).items()}
        accelerator.init_trackers("livt_hf", config=scalars)
    return PretrainingLoop(
        run,
        accelerator,
        model,
        schedule,
        monitor,
        checkpoint,
        betas=args.betas,
        weight_decay=args.weight_decay,
        accumulation_steps=args.gradient_accumulation_steps,
        save_every=args.save_every,
        logging_steps=args.logging_steps,
        compile=args.compile,
    )


def build_autoencoder(args: AutoencoderArguments) -> LivtMAEForPreTraining:
    """Build the model from the arguments, or load weights and sizes of the ``--pretrained`` model.

    If the image size differs, position embeddings are interpolated bicubically, as in fine-tuning.

    Raises:
        ValueError: the model cannot be loaded, is not a masked autoencoder, or has another patch size.
    """
    if args.pretrained == "none":
        return LivtMAEForPreTraining(mae_config(args))
    given, new = load_model(
        LivtMAEForPreTraining,
        args.pretrained,
        "pretrained",
        optional=lambda model: [name for name in model.state_dict() if name.startswith("decoder.")],
        quiet=True,
    )
    if new:
        weights = counted(len(new), "weight")
        logger.info(f"{args.pretrained} lacks {weights} of the decoder, which are newly initialized")
    if args.patch_size != given.config.patch_size and args.patch_size != AutoencoderArguments.patch_size:
        raise ValueError(
            f"patch_size: {args.patch_size} differs from {given.config.patch_size} of {args.pretrained}; leave it out"
        )
    if line := unused_sizes(args.given_sizes(), given.config, args.pretrained):
        logger.info(line)
    settings = {name: getattr(args, name) for name in ("mask_ratio", "norm_pix_loss", "partial_reconstruction")}
    image_size = args.image_size or given.config.image_size
    if image_size != given.config.image_size:
        logger.info(other_image_size(image_size, given.config.image_size, args.pretrained))
    config = LivtMAEConfig(**{**given.config.to_dict(), **settings, "image_size": image_size})
    model = LivtMAEForPreTraining(config)
    weights = given.state_dict()
    num_patches = (config.image_size // config.patch_size) ** 2
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        weights[name] = interpolate_position_embeddings(weights[name], num_patches)
    model.load_state_dict(weights)
    return model


def mae_config(args: AutoencoderArguments) -> LivtMAEConfig:
    """The configuration of a new model."""
    check_width("decoder_", args.decoder_hidden_size, args.decoder_num_attention_heads)
    return LivtMAEConfig(
        **encoder_sizes(args.model_size, args.given_sizes()),
        image_size=args.image_size or 224,
        patch_size=args.patch_size,
        mask_ratio=args.mask_ratio,
        norm_pix_loss=args.norm_pix_loss,
        partial_reconstruction=args.partial_reconstruction,
        decoder_hidden_size=args.decoder_hidden_size,
        decoder_num_hidden_layers=args.decoder_num_hidden_layers,
        decoder_num_attention_heads=args.decoder_num_attention_heads,
        decoder_intermediate_size=4 * args.decoder_hidden_size,
    )
