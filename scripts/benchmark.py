#!/usr/bin/env python
"""Speed compared with the usual alternatives, measured in the same process.

`python scripts/benchmark.py loader` measures image loading, `mae` a pretraining step, `finetune` a fine-tuning step;
`all` runs the three with their defaults. `--output FILE.json` saves the results, with hardware and versions.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler

import numpy as np
import PIL.Image
import torch
from datasets import disable_progress_bars
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from livt_hf import LivtMAEForPreTraining
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.data import (
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.tools.prepare import prepare_dataset
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from livt_hf.models.configuration_livt import VIT_SIZES, LivtMAEConfig, encoder_sizes
from livt_hf.optimization import adamw, parameter_groups
from livt_hf.reporting.provenance import command_line, hardware, versions
from livt_hf.training.finetuning import build_classifier
from livt_hf.training.pretraining import pretrain

IMAGE_SIZE = 224


def benchmark_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second per core: all pipelines read the same JPEG files, batch by batch, in one process.

    CPU time is measured, so that other load on the machine matters little. Our batches are uint8 (normalized on the
    device), those of the usual pipelines are normalized float32.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_photos(Path(folder) / "photos", args.images, args.jpeg_quality)
        photos = load_long_tailed(Path(folder) / "photos")
        prepare_dataset(photos, Path(folder) / "prepared", num_workers=0)
        prepared = load_long_tailed(Path(folder) / "prepared")
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(
            f"{len(files)} JPEGs of 500 x 375, quality {args.jpeg_quality}, {size:.0f} kB each; {args.repeats} repeats"
        )

        pretrain = PretrainTransform(IMAGE_SIZE, num_patches=196)
        finetune = FinetuneTransform(IMAGE_SIZE)
        sides = {
            "pretraining, PIL reference": reference_batches(files, pil_pretrain_transform(), args.batch_size),
            "pretraining, ours": our_batches(photos, pretrain, args.batch_size),
            "pretraining, ours, prepared": our_batches(prepared, pretrain, args.batch_size),
            "fine-tuning, timm": reference_batches(files, timm_finetune_transform(), args.batch_size),
            "fine-tuning, ours": our_batches(photos, finetune, args.batch_size),
            "fine-tuning, ours, prepared": our_batches(prepared, finetune, args.batch_size),
        }
        speeds = measure(sides, args.repeats)

    base, figures = 1.0, {}
    for name, speed in speeds.items():
        base = base if "ours" in name else speed
        print(f"{name:<29}{speed:7.0f} images/s per core {speed / base:6.2f} x")
        figures[name] = {"images_per_second": speed, "ratio": speed / base}
    return figures


def measure(sides: dict[str, Callable[[], Iterable]], repeats: int) -> dict[str, float]:
    """Median images per second of CPU time, measured in turns; the first turn is warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, batches in sides.items():
            start, images = time.process_time(), 0
            for batch in batches():
                images += len(batch)
            if repeat:
                speeds[name].append(images / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def our_batches(splits, transform, batch_size: int) -> Callable[[], Iterable]:
    dataset = ImageDataset(splits["train"], transform)

    def batches():
        sampler = TrainingBatches(len(dataset), batch_size, stop_step=len(dataset) // batch_size)
        return (batch["pixel_values"] for batch in training_loader(dataset, sampler, num_workers=0))

    return batches


class Files(Dataset):
    """As torchvision's ImageFolder: PIL, conversion to RGB, transform."""

    def __init__(self, files: list[Path], transform):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with PIL.Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def reference_batches(files: list[Path], transform, batch_size: int) -> Callable[[], Iterable]:
    return functools.partial(DataLoader, Files(files, transform), batch_size, shuffle=True, drop_last=True)


def pil_pretrain_transform():
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=(0.2, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def timm_finetune_transform():
    """timm's training transform, with posterize limited to at least one bit, as Pillow 13 requires."""
    transform = create_transform(
        IMAGE_SIZE,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    (rand_augment,) = (step for step in transform.transforms if hasattr(step, "ops"))
    for op in rand_augment.ops:
        if op.name.startswith("Posterize"):
            op.level_fn = functools.partial(lambda level_fn, *args: (max(1, level_fn(*args)[0]),), op.level_fn)
    return transform


def benchmark_mae(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of a pretraining step: ours, ours with a quarter of the masked patches reconstructed, and
    upstream's `ViTMAEForPreTraining` with SDPA; same sizes, dtype and optimizer, measured in turns. Then a profile of
    our step, and its speed within `livt pretrain` on JPEGs relative to the step alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    sizes = encoder_sizes(args.model_size)
    sizes |= {"image_size": args.image_size, "patch_size": args.patch_size}
    models: dict[str, torch.nn.Module] = {
        "upstream": ViTMAEForPreTraining(ViTMAEConfig(**sizes, norm_pix_loss=True)),
        "ours": LivtMAEForPreTraining(LivtMAEConfig(**sizes)),
        "ours, R = 0.25": LivtMAEForPreTraining(LivtMAEConfig(**sizes, partial_reconstruction=0.25)),
    }
    pixels = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    noise = torch.rand(args.batch_size, (args.image_size // args.patch_size) ** 2, device=device)
    steps = {}
    for name, model in models.items():
        forward = torch.compile(model.to(device)) if args.compile else model.to(device)
        steps[name] = functools.partial(train_step, forward, pretraining_optimizer(model), dtype, pixels, noise=noise)
    peak = matmul_peak(device, dtype)
    rates = take_turns(steps, args, device)
    peak = max(peak, matmul_peak(device, dtype))  # either may suffer from other load on the machine
    print(
        f"ViT-{args.model_size}/{args.patch_size}, {args.image_size} px, batch {args.batch_size}, {args.dtype}, "
        f"{'compiled, ' * args.compile}{device}, {torch.get_num_threads()} threads; matmul peak {peak / 1e12:.2f} "
        f"TFLOP/s; {args.repeats} repeats of {args.steps} steps"
    )
    figures: dict[str, Any] = {"matmul_peak_tflops": peak / 1e12}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            train_step(models[name], step.args[1], dtype, pixels, noise=noise)
        flops, memory = counter.get_total_flops() / args.batch_size, step_memory(step, device)
        print(
            f"{name:<16}{rates[name]:8.1f} images/s {rates[name] / rates['upstream']:6.2f} x {flops / 1e9:7.1f} GFLOP "
            f"per image, {flops * rates[name] / 1e12:.2f} TFLOP/s, {flops * rates[name] / peak:4.0%} of the peak, "
            f"{memory / 2**20:6.0f} MiB per step"
        )
        figures[name] = {
            "images_per_second": rates[name],
            "ratio": rates[name] / rates["upstream"],
            "gflop_an_image": flops / 1e9,
            "share_of_peak": flops * rates[name] / peak,
            "mib_in_a_step": memory / 2**20,
        }
    figures["profile"] = print_profile(steps["ours"], device)
    if device == "cpu" or not args.compile:
        figures["end_to_end"] = print_end_to_end(steps["ours"], args, device)
    return figures


def benchmark_finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of a fine-tuning step: ours, and the same classifier with transformers' SDPA, measured in
    turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    counts = {str(label): 1000 // (label + 1) for label in range(100)}
    pixels = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    labels = torch.arange(args.batch_size, device=device) % len(counts)
    steps = {}
    for name in ("transformers", "ours"):
        run = FinetuneArguments(
            model_size=args.model_size,
            image_size=args.image_size,
            patch_size=args.patch_size,
            label_smoothing=0.0,
        )
        model: Any = build_classifier(run, counts, run.shot_groups())
        model.to(device)
        if name == "transformers":
            model.set_attn_implementation("sdpa")
        groups = parameter_groups(model, run.weight_decay, run.layer_decay)
        optimizer = adamw(groups, 1e-3, run.betas)
        steps[name] = functools.partial(train_step, model.train(), optimizer, dtype, pixels, labels=labels)
    rates = take_turns(steps, args, device)
    sizes = f"ViT-{args.model_size}/{args.patch_size}, {args.image_size} px"
    print(f"{sizes}, batch {args.batch_size}, {args.dtype}, {device}, {torch.get_num_threads()} threads")
    figures = {}
    for name, rate in rates.items():
        print(f"{name:<16}{rate:8.1f} images/s {rate / rates['transformers']:6.2f} x")
        figures[name] = {"images_per_second": rate, "ratio": rate / rates["transformers"]}
    return figures


def take_turns(steps: Mapping[str, Callable[[], None]], args: argparse.Namespace, device: str) -> dict[str, float]:
    """Median images per second of each step, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first turn is warm-up
                seconds[name].append((time.perf_counter() - start) / args.steps)
    return {name: args.batch_size / statistics.median(values) for name, values in seconds.items()}


def step_memory(step: Callable[[], None], device: str) -> int:
    """Peak bytes of activations and gradients in a step."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(allocated.max())


KINDS = {
    "linear layers": ("aten::addmm", "aten::mm"),
    "attention": ("aten::bmm", "softmax", "scaled_dot_product", "flash_attention"),
    "optimizer": ("_fused_adamw",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::contiguous"),
}


def print_profile(step: Callable[[], None], device: str) -> dict[str, float]:
    """Fraction of a step's time per kind of operation, from torch's profiler."""
    with torch.profiler.profile() as profiler:
        step()
    on_device = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    spent = {event.key: getattr(event, on_device) for event in profiler.key_averages()}
    total = sum(spent.values())
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for name, time_spent in spent.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "the rest")
        shares[kind] += time_spent / total
    print("our step: " + ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items()))
    return shares


def print_end_to_end(step: Callable[[], None], args: argparse.Namespace, device: str) -> dict[str, float]:
    """Speed of `livt pretrain` on JPEG files relative to the step alone, measured in turns."""
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos" / "train", 4 * args.batch_size, quality=90)
        for repeat in range(args.repeats):
            alone.append(take_turns({"step": step}, argparse.Namespace(**{**vars(args), "repeats": 1}), device)["step"])
            run = PretrainArguments(
                dataset=str(Path(folder) / "photos"),
                model_size=args.model_size,
                image_size=args.image_size,
                patch_size=args.patch_size,
                batch_size=args.batch_size,
                max_steps=2 * args.steps,
                logging_steps=args.steps,
                mixed_precision="bf16" if args.dtype == "bf16" else "no",
                num_workers=1 if device == "cpu" else 8,
                output_dir=str(Path(folder) / f"run-{repeat}"),
            )
            with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
                pretrain(run)
            lines = (Path(run.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            whole.append(json.loads(lines[-1])["images_per_second"])  # the first logging window is warm-up
    ratio = statistics.median(run / step for run, step in zip(whole, alone, strict=True))
    print(f"end to end      {statistics.median(whole):8.1f} images/s, {ratio:.0%} of the step alone")
    return {"images_per_second": statistics.median(whole), "share_of_the_step": ratio}


def pretraining_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(parameter_groups(model, weight_decay=0.05), 1.5e-4, (0.9, 0.95))


def train_step(model, optimizer, dtype: torch.dtype, pixels: torch.Tensor, **inputs: torch.Tensor) -> None:
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(pixels, **inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def matmul_peak(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """Highest FLOP/s of several square matrix products."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def write_photos(folder: Path, count: int, quality: int) -> list[Path]:
    """Write JPEGs with the amplitude spectrum of photographs, 1 / frequency ** 1.4, in correlated colors: 0.34 bytes
    per pixel at quality 90, as real photographs of that size have (Grocery Store Dataset)."""
    (folder / "a").mkdir(parents=True)
    files = []
    for index in range(count):
        random = np.random.default_rng(index)
        frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500))
        frequency[0, 0] = 1
        noise = random.normal(size=(3, 375, 500)) * 0.3 + random.normal(size=(375, 500))
        channels = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.4, (375, 500))
        channels = (channels - channels.mean()) / channels.std() * 55 + 118  # mean and contrast of ImageNet
        files.append(folder / "a" / f"{index}.jpg")
        PIL.Image.fromarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(files[-1], quality=quality)
    return files


def benchmark_all(args: argparse.Namespace) -> dict[str, Any]:
    """All benchmarks with their defaults."""
    figures = {}
    for command in ("loader", "mae", "finetune"):
        print(f"# {command}")
        one = build_parser().parse_args([command])
        figures[command] = one.run(one)
    return figures


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument("--output", type=Path, metavar="FILE.json", help="save the results to a file")
    measured = argparse.ArgumentParser(add_help=False)
    measured.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    measured.add_argument("--repeats", type=int, default=3, help="the median is reported (default: %(default)s)")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model_size", default="ti", choices=list(VIT_SIZES), help="default: %(default)s")
    model.add_argument("--image_size", type=int, default=224, help="default: %(default)s")
    model.add_argument("--patch_size", type=int, default=16, help="default: %(default)s")
    model.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"), help="default: %(default)s")
    model.add_argument("--steps", type=int, default=3, help="steps per turn (default: %(default)s)")

    def add(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], text: str, *parents) -> Any:
        command = commands.add_parser(name, help=text, description=run.__doc__, parents=[everywhere, *parents])
        command.set_defaults(run=run)
        return command

    loader = add("loader", benchmark_loader, "image loading compared with PIL and timm", measured)
    loader.add_argument("--images", type=int, default=192, help="number of distinct images (default: %(default)s)")
    loader.add_argument("--jpeg_quality", type=int, default=90, help="default: %(default)s")
    mae = add("mae", benchmark_mae, "a pretraining step compared with upstream's", measured, model)
    mae.add_argument("--compile", action="store_true", help="compile all models with torch.compile")
    add("finetune", benchmark_finetune, "a fine-tuning step with our attention and with SDPA", measured, model)
    add("all", benchmark_all, "all benchmarks, with their defaults")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    disable_progress_bars()
    figures = args.run(args)
    if args.output:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        record = {"command": command_line(), "hardware": hardware(device), "versions": versions()}
        args.output.write_text(json.dumps({**record, "figures": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
