"""Masked generative pretraining (MGP; LiVT Algorithm 1, lines 1 to 9): the training loop, on Accelerate.

Labels are never trained on. What a step sees is a function of the seed and the step alone (see `data/loading.py`), so a
run can be interrupted anywhere and continued, also with another number of processes at the same global batch, and
with another engine (one device, DDP, FSDP2): a checkpoint holds whole tensors by name.
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
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.fsdp import register_fsdp_forward_method
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..config.arguments import PretrainArguments
from ..data import PretrainTransform, TrainingBatches, load_long_tailed, normalize, training_loader
from ..data.streaming import StreamedSamples, open_stream, streaming_loader, training_dataset
from ..data.transforms import image_processor
from ..files import RUN_FILE, atomic_folder, explain_failed_write, publish_files, write_text
from ..hub.background import BackgroundPusher
from ..models.configuration_livt import LivtMAEConfig, check_width, encoder_sizes, unused_sizes
from ..models.modeling_livt import interpolate_position_embeddings
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from ..optimization import adamw, parameter_groups, schedule_length, warmup_cosine
from ..reporting.card import write_autoencoder_card
from ..reporting.provenance import hardware
from .checkpoint import (
    find_resume_checkpoint,
    load_optimizer,
    load_tensors,
    load_weights,
    random_state,
    remove_old_checkpoints,
    set_aside_later_checkpoints,
    set_random_state,
    set_schedule,
)
from .monitor import Monitor
from .run import (
    WHOLE,
    MetricsLog,
    StopSignal,
    agreed_stop,
    check_continues,
    check_keeps,
    check_precision,
    describe_world,
    finished_steps,
    read_record,
    run_record,
    start_pusher,
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
    accelerator = build_accelerator(args)
    say = accelerator.print
    set_seed(args.seed)
    model = build_autoencoder(args, say)
    config = model.config
    transform = PretrainTransform(
        config.image_size,
        num_patches=(config.image_size // config.patch_size) ** 2,
        min_crop_scale=args.min_crop_scale,
        horizontal_flip=args.horizontal_flip,
    )
    splits = None if args.streaming else load_long_tailed(args.dataset, **args.data_options())
    images = open_stream(args) if splits is None else splits["train"]
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
    check_keeps(output_dir, args, steps, checkpoint)
    if checkpoint is not None:
        state = read_record(checkpoint, STATE_FILE)
        for line in check_continues(state, args, state["steps"], steps):
            say(f"resuming with another {line}")
        load_weights(model, checkpoint)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    monitor = Monitor(accelerator, args, splits, config.image_size, batches.steps_per_epoch)
    peak_lr = args.base_lr * batches.global_batch_size / 256
    model.to(accelerator.device)
    optimizer = adamw(parameter_groups(model, args.weight_decay), peak_lr, args.betas)
    model, optimizer = accelerator.prepare(model, optimizer)
    for method in ("features", "reconstruct"):
        register_fsdp_forward_method(model, method)  # does nothing without FSDP
    scheduler = warmup_cosine(optimizer.optimizer, batches.steps_per_epoch, peak_lr, args.min_lr, warmup_epochs, epochs)
    run = _Run(accelerator, model, optimizer, scheduler, monitor, args)
    processor = image_processor(config.image_size, 0.875, args.mean, args.std)
    run.pusher = start_pusher(args, processor) if accelerator.is_main_process else None
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
    for tracker in accelerator.trackers:
        tracker.finish()
    if stopped_by:
        if run.pusher:
            run.pusher.stop()
        say(f"stopped by {stopped_by} after step {run.step} of {steps}; the same command continues the run")
        return None
    weights = run.whole_weights()
    if accelerator.is_main_process:
        with explain_failed_write(output_dir), publish_files(output_dir) as folder:
            run.unwrapped.save_pretrained(folder, state_dict=weights)
            processor.save_pretrained(folder)
            write_text(folder / RUN_FILE, json.dumps(run_record(args, steps), indent=2))
        write_autoencoder_card(
            output_dir, repo_id=args.hub_model_id, images=len(images), hardware=hardware(accelerator.device)
        )
    accelerator.wait_for_everyone()
    say(f"saved the pretrained model in {output_dir}")
    if run.pusher and (error := run.pusher.finish(output_dir)):
        say(error)
    return output_dir


def build_accelerator(args: PretrainArguments) -> Accelerator:
    """The engine that `accelerate launch` was told of, with what the options add.

    Raises:
        ValueError: a tracker that is unknown or not installed, or a type that the device cannot compute with.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for tracker in args.log_with:
        if tracker not in available:
            raise ValueError(
                f"log_with: {tracker!r} is not installed; install it, or use one of: {', '.join(available) or 'none'}"
            )
    check_precision(args.mixed_precision)
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.log_with or None,
        project_dir=args.output_dir,
        dynamo_backend="inductor" if args.compile else None,
    )
    if args.log_with:
        told = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in vars(args).items()
        }
        accelerator.init_trackers("livt_hf", config=told)
    return accelerator


def build_autoencoder(args: PretrainArguments, say: Callable[[str], None] = print) -> LivtMAEForPreTraining:
    """The model that the options describe; with ``--pretrained``, the weights and sizes are that model's.

    At another image size the position embeddings are resized bicubically, as for fine-tuning.

    Raises:
        ValueError: there is no such model, it is no masked autoencoder, or it has another patch size.
    """
    if args.pretrained == "none":
        return LivtMAEForPreTraining(mae_config(args))
    given = load_autoencoder(args.pretrained, say)
    if args.patch_size != given.config.patch_size and args.patch_size != PretrainArguments.patch_size:
        raise ValueError(
            f"patch_size: {args.patch_size} is not the {given.config.patch_size} of {args.pretrained}; leave it out"
        )
    if line := unused_sizes(args, given.config):
        say(line)
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


def load_autoencoder(pretrained: str, say: Callable[[str], None]) -> LivtMAEForPreTraining:
    """A saved masked autoencoder. A file without a decoder is taken too: its decoder starts from scratch."""
    start = f"pretrained: {pretrained!r}"
    advice = "give the output folder of `livt pretrain`, a Hub id such as facebook/vit-mae-base, or none"
    try:
        model_type = AutoConfig.from_pretrained(pretrained).model_type
        if model_type != "vit_mae":
            raise ValueError(f"it is a {model_type!r} model, not a masked autoencoder ('vit_mae')")
        model, info = LivtMAEForPreTraining.from_pretrained(pretrained, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{start} cannot be loaded ({str(error).strip().splitlines()[0]}); {advice}") from None
    missing = [name for name in info["missing_keys"] if not name.startswith("decoder.")]
    if missing:
        raise ValueError(f"{start} lacks {len(missing)} weights of the encoder, such as {min(missing)}; {advice}")
    if info["missing_keys"]:
        say(f"{pretrained} holds no decoder ({len(info['missing_keys'])} weights are missing): it starts from scratch")
    return model


class _Run:
    """What changes during a run, and how it is saved: step, weights, optimizer, schedule, scaler, running loss."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        monitor: Monitor,
        args: PretrainArguments,
    ):
        self.accelerator, self.model, self.optimizer, self.scheduler = accelerator, model, optimizer, scheduler
        self.monitor, self.args, self.output_dir = monitor, args, Path(args.output_dir)
        self.unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
        self.pusher: BackgroundPusher | None = None
        self.step = 0
        self.shown: dict[str, str] = {}  # in the progress bar
        # Sums since the last logged step, on the device: reading them there at every step would stall it.
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.first_bad_step = torch.full((), -1, device=accelerator.device)

    def train(self, micro_batches: Iterator[dict[str, Tensor]], batches: TrainingBatches, steps: int) -> str | None:
        """Run to ``steps``; the name of the signal that stopped it before, or None."""
        args, main = self.args, self.accelerator.is_main_process
        if main:
            set_aside_later_checkpoints(self.output_dir, self.step)
        log = MetricsLog(self.output_dir, self.step) if main else None
        bar = tqdm(total=steps, initial=self.step, disable=not main, desc="pretraining", unit="step")
        with StopSignal() as stop, bar:
            if self.step == 0:
                self._watch(log, bar, batches.steps_per_epoch, steps)
            clock, clock_step = time.perf_counter(), self.step
            while self.step < steps:
                self._optimizer_step(micro_batches)
                bar.update()
                if self.step % args.logging_steps == 0 or self.step == steps:
                    values = self._read_logs(batches.steps_per_epoch)
                    seconds, clock = time.perf_counter() - clock, time.perf_counter()
                    speed = (self.step - clock_step) * batches.global_batch_size / seconds
                    clock_step = self.step
                    values["images_per_second"] = round(speed, 1)
                    self._tell(values, log, bar)
                interrupted = time.perf_counter()
                self._watch(log, bar, batches.steps_per_epoch, steps)
                stopped_by = agreed_stop(self.accelerator, stop, self.step)
                if (self.step % args.save_every == 0 and self.step < steps) or stopped_by:
                    self.save()
                clock += time.perf_counter() - interrupted  # the speed is that of training
                if stopped_by:
                    return stopped_by
        return None

    def _tell(self, values: dict[str, float], log: MetricsLog | None, bar: tqdm) -> None:
        """Log file, trackers and progress bar."""
        if log:
            log.write(values)
        self.accelerator.log({name: value for name, value in values.items() if name != "step"}, step=self.step)
        formats = {"loss": ".4f", "lr": ".2e", "images_per_second": ".0f", "probe_accuracy": ".1f"}
        self.shown |= {name: format(values[name], form) for name, form in formats.items() if name in values}
        bar.set_postfix(self.shown, refresh=False)

    def _watch(self, log: MetricsLog | None, bar: tqdm, steps_per_epoch: int, steps: int) -> None:
        """Probe and pictures where they are due; before a checkpoint of the same step, so that no resume loses them."""
        values = self.monitor.probe(self.unwrapped, self.step)
        if values:
            self._tell({"step": self.step, "epoch": round(self.step / steps_per_epoch, 4), **values}, log, bar)
        self.monitor.draw(self.unwrapped, self.step, last=self.step == steps)

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
        # The fused optimizer skips its update by itself where this is set: no need to wait for the device to tell us.
        self.optimizer.optimizer.found_inf = bad
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        self.loss_sum += loss_sum
        self.first_bad_step = torch.where((bad > 0) & (self.first_bad_step < 0), self.step, self.first_bad_step)

    def _read_logs(self, steps_per_epoch: int) -> dict[str, float]:
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
        }

    def _check_finite(self) -> None:
        step = int(self.first_bad_step.item())
        if step >= 0:
            raise ValueError(
                f"the loss was not finite at step {step}; its update was not made and the last checkpoint in "
                f"{self.output_dir} is good: lower --base_lr, or use --mixed_precision bf16 or no instead of fp16"
            )

    def whole_weights(self) -> dict[str, Any]:
        """All weights by name, put together from the shards of FSDP; on the main process. All processes call it."""
        return get_model_state_dict(self.unwrapped, options=WHOLE)

    def save(self) -> None:
        self._check_finite()
        loss_sum = self.accelerator.reduce(self.loss_sum, "mean")
        weights = self.whole_weights()
        optimizer = get_optimizer_state_dict(self.unwrapped, self.optimizer.optimizer, options=WHOLE)
        if self.accelerator.is_main_process:
            path = self.output_dir / f"checkpoint-{self.step}"
            with explain_failed_write(path), atomic_folder(path) as folder:
                self.unwrapped.save_pretrained(folder, state_dict=weights)
                torch.save(optimizer, folder / "optimizer.pt")
                torch.save(random_state(self.accelerator.device), folder / "random.pt")
                if self.accelerator.scaler is not None:
                    torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
                state = {"loss_sum": loss_sum.item(), **run_record(self.args, self.step)}
                write_text(folder / STATE_FILE, json.dumps(state, indent=2))
            if self.pusher:
                self.pusher.push(self.output_dir / f"checkpoint-{self.step}", f"step {self.step}")
            remove_old_checkpoints(self.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Everything but the weights, which are loaded before the model is prepared.

        The schedule and the position in the data are functions of the step, and the optimizer's options are those of
        the command.
        """
        self.step = state["steps"]
        self.loss_sum.fill_(state["loss_sum"])
        load_optimizer(self.unwrapped, self.optimizer.optimizer, load_tensors(checkpoint / "optimizer.pt"))
        set_schedule(self.scheduler, self.step)
        set_random_state(load_tensors(checkpoint / "random.pt"), self.accelerator.device)
        scaler = checkpoint / "scaler.pt"
        if self.accelerator.scaler is not None and scaler.exists():
            self.accelerator.scaler.load_state_dict(load_tensors(scaler))


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


def _millions(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}"
