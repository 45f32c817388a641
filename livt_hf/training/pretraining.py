"""Masked generative pretraining (MGP; LiVT Algorithm 1, lines 1 to 9): the training loop, on Accelerate.

Labels are never trained on. What a step sees is a function of the seed and the step alone (see `data/loader.py`), so a
run can be interrupted anywhere and continued, also with another number of processes at the same global batch, and
with another engine (one device, DDP, FSDP2): a checkpoint holds whole tensors by name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method
from tqdm.auto import tqdm

from ..config.arguments import PretrainArguments
from ..data import PretrainTransform, normalize
from ..data.transforms import image_processor
from ..files import write_text
from ..models.configuration_livt import LivtMAEConfig, check_width, encoder_sizes, unused_sizes
from ..models.loading import load_model
from ..models.modeling_livt import interpolate_position_embeddings
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from ..optimization import Schedule, adamw, parameter_groups
from ..reporting.card import write_autoencoder_card
from ..reporting.provenance import hardware
from .checkpoint import (
    FULL_STATE_DICT,
    STATE_FILE,
    load_optimizer,
    load_tensors,
    load_weights,
    random_state,
    set_random_state,
    set_schedule,
)
from .data import TrainingData, load_images, plan_schedule, training_data
from .monitor import Monitor
from .run import Run, StageRun, check_precision, not_finite, read_record

logger = logging.getLogger(__name__)


def pretrain(args: PretrainArguments) -> Path | None:
    """Pretrain a masked autoencoder and save it in ``args.output_dir``.

    Returns:
        The output folder, or None if the run was stopped by a signal before its end (it has saved a checkpoint).

    Raises:
        ValueError: options or data that cannot work, or a loss that is not finite.
    """
    accelerator = build_accelerator(args.mixed_precision, args.log_with, args.output_dir, args.compile, args.tf32)
    run = StageRun(args, (accelerator.num_processes, accelerator.process_index))
    model = build_autoencoder(args)
    size = model.config.image_size
    data = pretraining_data(args, size, model.config.patch_size, run)
    schedule = plan_schedule(args, data.batches)
    if run.is_finished(schedule.steps):
        return run.folder
    checkpoint = run.find_checkpoint(schedule.steps)
    loop = build_loop(args, run, accelerator, model, data, schedule, checkpoint)
    what = f"pretraining {loop.unwrapped.num_parameters() / 1e6:.2f} M parameters on {data.num_images} images"
    processor = image_processor(size, 0.875, args.mean, args.std)
    run.start(f"{what} at {size} px", schedule, processor, accelerator, checkpoint)
    data.batches.start_step, data.batches.stop_step = loop.step, schedule.steps
    stopped_by = loop.train(data.dataset.loader(data.batches, args.num_workers, accelerator.device.type == "cuda"))
    if stopped_by:
        run.stopped(stopped_by, loop.step)
        return None
    weights = loop.whole_weights()
    if run.is_main:
        run.save(loop.unwrapped, weights)
        machine = hardware(accelerator.device)
        write_autoencoder_card(run.folder, repo_id=args.hub_model_id, images=data.num_images, hardware=machine)
    run.publish(accelerator)
    return run.folder


def build_accelerator(
    mixed_precision: str | None, trackers: Sequence[str], project_dir: str, compile: bool, tf32: bool
) -> Accelerator:
    """The Accelerator, as configured by `accelerate launch`, with what the options add.

    Raises:
        ValueError: a tracker that is unknown or not installed, or a type that the device cannot compute with.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in available:
            raise ValueError(
                f"log_with: {tracker!r} is not installed; install it, or use one of: {', '.join(available) or 'none'}"
            )
    check_precision(mixed_precision)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return Accelerator(
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=project_dir,
        dynamo_backend="inductor" if compile else None,
    )


def pretraining_data(args: PretrainArguments, image_size: int, patch_size: int, run: StageRun) -> TrainingData:
    """Random crops with the noise that decides which patches are masked."""
    transform = PretrainTransform(
        image_size,
        num_patches=(image_size // patch_size) ** 2,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
    )
    return training_data(
        load_images(args, run.world),
        transform,
        run.world,
        batch_size=args.batch_size,
        accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
        max_bad_images=args.max_bad_images,
        output_dir=run.folder,
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
    """The training loop with its monitor and trackers, at the step of the checkpoint."""
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
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
    )


def build_autoencoder(args: PretrainArguments) -> LivtMAEForPreTraining:
    """Build the model from the arguments; with ``--pretrained``, weights and sizes are those of that model.

    At another image size the position embeddings are resized bicubically, as for fine-tuning.

    Raises:
        ValueError: there is no such model, it is no masked autoencoder, or it has another patch size.
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
        logger.info(f"{args.pretrained}: {len(new)} weights of the decoder are missing and newly initialized")
    if args.patch_size != given.config.patch_size and args.patch_size != PretrainArguments.patch_size:
        raise ValueError(
            f"patch_size: {args.patch_size} is not the {given.config.patch_size} of {args.pretrained}; leave it out"
        )
    if line := unused_sizes(args.given_sizes(), given.config, args.pretrained):
        logger.info(line)
    settings = {name: getattr(args, name) for name in ("mask_ratio", "norm_pix_loss", "partial_reconstruction")}
    image_size = args.image_size or given.config.image_size
    config = LivtMAEConfig(**{**given.config.to_dict(), **settings, "image_size": image_size})
    model = LivtMAEForPreTraining(config)
    weights = given.state_dict()
    num_patches = (config.image_size // config.patch_size) ** 2
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        weights[name] = interpolate_position_embeddings(weights[name], num_patches)
    model.load_state_dict(weights)
    return model


def mae_config(args: PretrainArguments) -> LivtMAEConfig:
    """The configuration of a model that starts from scratch."""
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


class PretrainingLoop:
    """The training loop and its state: step, weights, optimizer, schedule, scaler, sum of losses.

    Args:
        model: with the weights to start from, unless there is a checkpoint.
        checkpoint: where to continue from.
        accumulation_steps: micro-batches of an optimizer step.
        save_every, logging_steps: optimizer steps.
    """

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        model: LivtMAEForPreTraining,
        schedule: Schedule,
        monitor: Monitor,
        checkpoint: Path | None = None,
        *,
        betas: Sequence[float],
        weight_decay: float,
        accumulation_steps: int,
        save_every: int,
        logging_steps: int,
    ):
        self.run, self.accelerator, self.schedule, self.monitor = run, accelerator, schedule, monitor
        self.accumulation_steps, self.save_every, self.logging_steps = accumulation_steps, save_every, logging_steps
        if checkpoint is not None:
            load_weights(model, checkpoint)  # before it is sharded
        model.to(accelerator.device)
        optimizer = adamw(parameter_groups(model, weight_decay), schedule.peak_lr, betas)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        for method in ("features", "reconstruct"):
            register_fsdp_forward_method(self.model, method)  # does nothing without FSDP
        self.unwrapped = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.scheduler = schedule.scheduler(self.optimizer.optimizer)
        self.step = 0
        self.shown: dict[str, str] = {}  # in the progress bar
        # Sums since the last logged step, on the device: reading them there at every step would stall it.
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.first_bad_step = torch.full((), -1, device=accelerator.device)
        if checkpoint is not None:
            self._load(checkpoint)

    def train(self, micro_batches: Iterable[dict[str, Tensor]]) -> str | None:
        """Run to the end of the schedule; the name of the signal that stopped it before, or None."""
        steps, micro_batches = self.schedule.steps, iter(micro_batches)
        self.run.begin(self.step)
        bar = tqdm(total=steps, initial=self.step, disable=not self.run.is_main, desc="pretraining", unit="step")
        stopped_by = None
        with self.run.stop_signal, bar:
            if self.step == 0:
                self._monitor(bar)
            clock, clock_step = time.perf_counter(), self.step
            while self.step < steps and not stopped_by:
                self._optimizer_step(micro_batches)
                bar.update()
                if self.step % self.logging_steps == 0 or self.step == steps:
                    values = self._read_logs()
                    seconds, clock = time.perf_counter() - clock, time.perf_counter()
                    speed = (self.step - clock_step) * self.schedule.global_batch_size / seconds
                    clock_step = self.step
                    values["images_per_second"] = round(speed, 1)
                    self._log(values, bar)
                interrupted = time.perf_counter()
                self._monitor(bar)
                stopped_by = self.run.stop_requested(self.accelerator, self.step)
                if (self.step % self.save_every == 0 and self.step < steps) or stopped_by:
                    self.save()
                clock += time.perf_counter() - interrupted  # the speed is that of training
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return stopped_by

    def _log(self, values: dict[str, float], bar: tqdm) -> None:
        """Log file, trackers and progress bar."""
        self.run.log(values)
        self.accelerator.log({name: value for name, value in values.items() if name != "step"}, step=self.step)
        formats = {"loss": ".4f", "lr": ".2e", "images_per_second": ".0f", "probe_accuracy": ".1f"}
        self.shown |= {name: format(values[name], form) for name, form in formats.items() if name in values}
        bar.set_postfix(self.shown, refresh=False)

    def _monitor(self, bar: tqdm) -> None:
        """Probe and pictures where they are due; before a checkpoint of the same step, so that no resume loses them."""
        values = self.monitor.probe(self.unwrapped, self.step)
        if values:
            self._log({"step": self.step, "epoch": self._epoch(), **values}, bar)
        self.monitor.draw(self.unwrapped, self.step, last=self.step == self.schedule.steps)

    def _epoch(self) -> float:
        return round(self.step / self.schedule.steps_per_epoch, 4)

    def _optimizer_step(self, micro_batches: Iterator[dict[str, Tensor]]) -> None:
        accelerator, mean, std = self.accelerator, self.monitor.mean, self.monitor.std
        loss_sum = torch.zeros_like(self.loss_sum)
        for micro_batch in range(self.accumulation_steps):
            last = micro_batch == self.accumulation_steps - 1
            batch = next(micro_batches)
            pixels = batch["pixel_values"].to(accelerator.device, non_blocking=True)
            noise = batch["noise"].to(accelerator.device, non_blocking=True)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(normalize(pixels, mean, std), noise=noise).loss
                loss = loss / self.accumulation_steps
                accelerator.backward(loss)
            loss_sum += loss.detach()
        bad = (~torch.isfinite(loss_sum)).float()
        if accelerator.num_processes > 1:
            bad = accelerator.reduce(bad, "sum").clamp(max=1)
        # The fused optimizer skips its update by itself where this is set: no need to wait for the device.
        self.optimizer.optimizer.found_inf = bad
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.loss_sum += loss_sum
        self.first_bad_step = torch.where((bad > 0) & (self.first_bad_step < 0), self.step, self.first_bad_step)

    def _read_logs(self) -> dict[str, float]:
        """Mean loss over the processes and the steps since the last call.

        Raises:
            ValueError: one of them was not finite (its update was skipped, so the weights are those from before).
        """
        self._check_finite()
        window = (self.step - 1) % self.logging_steps + 1
        loss = self.accelerator.reduce(self.loss_sum, "mean").item() / window
        self.loss_sum.zero_()
        return {
            "step": self.step,
            "epoch": self._epoch(),
            "loss": loss,
            "lr": self.scheduler.get_last_lr()[0],
        }

    def _check_finite(self) -> None:
        step = int(self.first_bad_step.item())
        if step >= 0:
            raise not_finite(step, self.run.folder)

    def whole_weights(self) -> dict[str, Any]:
        """All weights by name, put together from the shards of FSDP; on the main process. All processes call it."""
        return get_model_state_dict(self.unwrapped, options=FULL_STATE_DICT)

    def save(self) -> None:
        self._check_finite()
        loss_sum = self.accelerator.reduce(self.loss_sum, "mean")
        weights = self.whole_weights()
        optimizer = get_optimizer_state_dict(self.unwrapped, self.optimizer.optimizer, options=FULL_STATE_DICT)
        with self.run.checkpoint(self.step, self.accelerator) as folder:
            if self.run.is_main:
                self.unwrapped.save_pretrained(folder, state_dict=weights)
                torch.save(optimizer, folder / "optimizer.pt")
                torch.save(random_state(self.accelerator.device), folder / "random.pt")
                if self.accelerator.scaler is not None:
                    torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
                state = {"loss_sum": loss_sum.item(), **self.run.record, "steps": self.step}
                write_text(folder / STATE_FILE, json.dumps(state, indent=2))

    def _load(self, checkpoint: Path) -> None:
        """Everything but the weights.

        The schedule and the position in the data are functions of the step, and the optimizer's options are those of
        the command.
        """
        state = read_record(checkpoint, STATE_FILE)
        self.step = state["steps"]
        self.loss_sum.fill_(state["loss_sum"])
        load_optimizer(self.unwrapped, self.optimizer.optimizer, load_tensors(checkpoint / "optimizer.pt"))
        set_schedule(self.scheduler, self.step)
        set_random_state(load_tensors(checkpoint / "random.pt"), self.accelerator.device)
        scaler = checkpoint / "scaler.pt"
        if self.accelerator.scaler is not None and scaler.exists():
            self.accelerator.scaler.load_state_dict(load_tensors(scaler))
