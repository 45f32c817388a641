"""Masked generative pretraining (MGP; LiVT Algorithm 1, lines 1 to 9): the training loop, on Accelerate.

Labels are never read. What a step sees is a function of the seed and the step alone (see `data/loading.py`), so a run
can be interrupted anywhere and continued, also with another number of processes at the same global batch.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from .arguments import PretrainArguments, StageArguments
from .checkpoints import (
    MetricsLog,
    StopSignal,
    atomic_folder,
    find_resume_checkpoint,
    publish_files,
    remove_old_checkpoints,
    write_text,
)
from .configuration_livt import VIT_SIZES, LivtMAEConfig
from .data import ImageDataset, PretrainTransform, TrainingBatches, load_long_tailed, normalize, training_loader
from .data.streaming import ImageStream, StreamedSamples, load_stream, streaming_loader
from .data.transforms import image_processor
from .modeling_mae import LivtMAEForPreTraining
from .optimization import adamw, parameter_groups, schedule_length, warmup_cosine
from .runs import (
    RUN_FILE,
    agreed_stop,
    check_continues,
    describe_world,
    finished_steps,
    load_weights,
    read_record,
    run_record,
)

STATE_FILE = "state.json"  # in a checkpoint: the run record and what else a resume needs


def pretrain(args: PretrainArguments) -> Path | None:
    """Pretrain a masked autoencoder and save it in ``args.output_dir``.

    Returns:
        The output folder, or None if the run was stopped by a signal before its end (it has saved a checkpoint).

    Raises:
        ValueError: options or data that cannot work, or a loss that is not finite.
    """
    args.require("dataset", "output_dir")
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    say = accelerator.print
    set_seed(args.seed)
    config = mae_config(args)
    transform = PretrainTransform(
        config.image_size,
        num_patches=(config.image_size // config.patch_size) ** 2,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
    )
    images = open_stream(args) if args.streaming else load_long_tailed(args.dataset, **args.data_options())["train"]
    world = accelerator.num_processes, accelerator.process_index
    dataset = training_dataset(args, images, transform, *world)
    batches = TrainingBatches(
        len(images),
        args.batch_size,
        args.gradient_accumulation_steps,
        *world,
        seed=args.seed,
    )
    steps, epochs, warmup_epochs = schedule_length(
        batches.steps_per_epoch, args.epochs, args.warmup_epochs, args.max_steps
    )
    if finished_steps(output_dir, args) == steps:
        say(f"{output_dir} holds this run, finished after {steps} steps; nothing to do")
        return output_dir
    checkpoint, skipped = find_resume_checkpoint(output_dir, args.resume)
    for line in skipped:
        say(line)

    model = LivtMAEForPreTraining(config)
    if checkpoint is not None:
        state = read_record(checkpoint, STATE_FILE)
        for line in check_continues(checkpoint, state["arguments"], args, state["steps"], steps):
            say(f"resuming with another {line}")
        load_weights(model, checkpoint)
    peak_lr = args.base_lr * batches.global_batch_size / 256
    model.to(accelerator.device)
    optimizer = adamw(parameter_groups(model, args.weight_decay), peak_lr, args.betas)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = warmup_cosine(optimizer.optimizer, batches.steps_per_epoch, peak_lr, args.min_lr, warmup_epochs, epochs)
    run = _Run(accelerator, model, optimizer, scheduler, args, output_dir)
    if checkpoint is not None:
        run.load(checkpoint, state)
    batches.start_step, batches.stop_step = run.step, steps
    say(
        f"pretraining {_millions(model)} M parameters on {len(images)} images at {config.image_size} px: "
        f"{steps} steps of {batches.global_batch_size} images ({epochs:.4g} epochs), peak learning rate {peak_lr:.3g}; "
        f"{describe_world(accelerator)}" + (f"; resumed from {checkpoint}" if checkpoint else "")
    )
    pin_memory = accelerator.device.type == "cuda"
    loader = (
        streaming_loader(dataset, args.batch_size, args.num_workers, pin_memory, start_step=run.step)
        if isinstance(dataset, StreamedSamples)
        else training_loader(dataset, batches, args.num_workers, pin_memory)
    )
    stopped_by = run.train(iter(loader), batches, steps)
    if stopped_by:
        say(f"stopped by {stopped_by} after step {run.step} of {steps}; the same command continues the run")
        return None
    if accelerator.is_main_process:
        with publish_files(output_dir) as folder:
            accelerator.unwrap_model(model).save_pretrained(folder)
            image_processor(config.image_size, 0.875, args.mean, args.std).save_pretrained(folder)
            write_text(folder / RUN_FILE, json.dumps(run_record(args, steps), indent=2))
    accelerator.wait_for_everyone()
    say(f"saved the pretrained model in {output_dir}")
    return output_dir


def open_stream(args: StageArguments) -> ImageStream:
    """The training split of ``--streaming``; its class counts are read from ``--class_counts`` or counted once."""
    counts = None
    if args.class_counts is not None:
        try:
            counts = json.loads(Path(args.class_counts).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"class_counts: cannot read {args.class_counts!r} as JSON: {error}") from None
    if args.imbalance_factor is not None:
        raise ValueError("imbalance_factor: a stream is taken as it is; leave out --streaming to cut a long tail")
    return load_stream(
        args.dataset, image_column=args.image_column, label_column=args.label_column, class_counts=counts
    )


def training_dataset(
    args: StageArguments,
    images: Dataset | ImageStream,
    transform: Callable[..., Any],
    num_processes: int,
    process_index: int,
) -> ImageDataset | StreamedSamples:
    """Transformed training images, from a data set or a stream."""
    options: dict[str, Any] = {
        "seed": args.seed,
        "max_bad_images": args.max_bad_images,
        "bad_images_log": Path(args.output_dir) / "bad_images.log",
    }
    if isinstance(images, ImageStream):
        return StreamedSamples(images, transform, num_processes, process_index, **options)
    return ImageDataset(images, transform, **options)


class _Run:
    """What changes during a run, and how it is saved: step, weights, optimiser, schedule, scaler, running loss."""

    def __init__(self, accelerator: Accelerator, model, optimizer, scheduler, args: PretrainArguments, folder: Path):
        self.accelerator, self.model, self.optimizer, self.scheduler = accelerator, model, optimizer, scheduler
        self.args, self.output_dir = args, folder
        self.step = 0
        # Sums since the last logged step, on the device: reading them there at every step would stall it.
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.first_bad_step = torch.full((), -1, device=accelerator.device)

    def train(self, micro_batches: Iterator[dict[str, Tensor]], batches: TrainingBatches, steps: int) -> str | None:
        """Run to ``steps``; the name of the signal that stopped it before, or None."""
        args, main = self.args, self.accelerator.is_main_process
        log = MetricsLog(self.output_dir, self.step) if main else None
        bar = tqdm(total=steps, initial=self.step, disable=not main, desc="pretraining", unit="step")
        started, start_step = time.perf_counter(), self.step
        with StopSignal() as stop, bar:
            while self.step < steps:
                self._optimizer_step(micro_batches)
                bar.update()
                if self.step % args.logging_steps == 0 or self.step == steps:
                    speed = (self.step - start_step) * batches.global_batch_size / (time.perf_counter() - started)
                    values = self._read_logs(batches.steps_per_epoch, speed)
                    bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{values['lr']:.2e}", images_per_s=f"{speed:.0f}")
                    if log:
                        log.write(values)
                stopped_by = agreed_stop(self.accelerator, stop, self.step)
                if (self.step % args.save_every == 0 and self.step < steps) or stopped_by:
                    self.save()
                if stopped_by:
                    return stopped_by
        return None

    def _optimizer_step(self, micro_batches: Iterator[dict[str, Tensor]]) -> None:
        args, accelerator = self.args, self.accelerator
        loss_sum = torch.zeros_like(self.loss_sum)
        for micro_batch in range(args.gradient_accumulation_steps):
            last = micro_batch == args.gradient_accumulation_steps - 1
            batch = next(micro_batches)
            pixels = batch["pixel_values"].to(accelerator.device, non_blocking=True)
            noise = batch["noise"].to(accelerator.device, non_blocking=True)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(normalize(pixels, args.mean, args.std), noise=noise).loss
                loss = loss / args.gradient_accumulation_steps
                accelerator.backward(loss)
            loss_sum += loss.detach()
        bad = (~torch.isfinite(loss_sum)).float()
        if accelerator.num_processes > 1:
            bad = accelerator.reduce(bad, "sum").clamp(max=1)
        # The fused optimiser skips its update by itself where this is set: no need to wait for the device to tell us.
        self.optimizer.optimizer.found_inf = bad
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.loss_sum += loss_sum
        self.first_bad_step = torch.where((bad > 0) & (self.first_bad_step < 0), self.step, self.first_bad_step)

    def _read_logs(self, steps_per_epoch: int, images_per_second: float) -> dict[str, float]:
        """Mean loss over the processes and the steps since the last call.

        Raises:
            ValueError: one of them was not finite (its update was skipped, so the weights are those from before).
        """
        self._check_finite()
        window = (self.step - 1) % self.args.logging_steps + 1
        loss = self.accelerator.reduce(self.loss_sum, "mean").item() / window
        self.loss_sum.zero_()
        return {
            "step": self.step,
            "epoch": round(self.step / steps_per_epoch, 4),
            "loss": loss,
            "lr": self.scheduler.get_last_lr()[0],
            "images_per_second": round(images_per_second, 1),
        }

    def _check_finite(self) -> None:
        step = int(self.first_bad_step.item())
        if step >= 0:
            raise ValueError(
                f"the loss was not finite at step {step}; its update was not made and the last checkpoint in "
                f"{self.output_dir} is good: lower --base_lr, or use --mixed_precision bf16 or no instead of fp16"
            )

    def save(self) -> None:
        self._check_finite()
        loss_sum = self.accelerator.reduce(self.loss_sum, "mean")
        if self.accelerator.is_main_process:
            with atomic_folder(self.output_dir / f"checkpoint-{self.step}") as folder:
                self.accelerator.unwrap_model(self.model).save_pretrained(folder)
                torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
                if self.accelerator.scaler is not None:
                    torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
                state = {"loss_sum": loss_sum.item(), **run_record(self.args, self.step)}
                write_text(folder / STATE_FILE, json.dumps(state, indent=2))
            remove_old_checkpoints(self.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Everything but the weights, which are loaded before the model is prepared."""
        self.step = state["steps"]
        self.loss_sum.fill_(state["loss_sum"])
        self.optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
        # The schedule is a function of the step, and the saved groups hold the rate of that step.
        self.scheduler.last_epoch = self.step
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        scaler = checkpoint / "scaler.pt"
        if self.accelerator.scaler is not None and scaler.exists():
            self.accelerator.scaler.load_state_dict(torch.load(scaler, weights_only=True))


def mae_config(args: PretrainArguments) -> LivtMAEConfig:
    """The model that the options describe."""
    check_width("decoder_", args.decoder_hidden_size, args.decoder_num_attention_heads)
    return LivtMAEConfig(
        **encoder_sizes(args),
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


def encoder_sizes(args: StageArguments) -> dict[str, Any]:
    """Width, depth, heads and MLP width of ``--model_size``, or what was given instead."""
    sizes = {name: getattr(args, name) or default for name, default in VIT_SIZES[args.model_size].items()}
    width = sizes["hidden_size"]
    check_width("", width, sizes["num_attention_heads"])
    return {**sizes, "intermediate_size": 4 * width}


def check_width(prefix: str, width: int, heads: int) -> None:
    if width % heads or width % 4:
        raise ValueError(
            f"{prefix}hidden_size: {width} must be divisible by {prefix}num_attention_heads {heads} and, for the 2-d "
            "position embeddings, by 4"
        )


def _millions(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}"
