#!/usr/bin/env python
"""Speed measurements. `python scripts/benchmark.py loader` compares our image loading with the usual pipelines."""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL.Image
import torch
from datasets import disable_progress_bars
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from livt_hf.data import (
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.prepare import prepare_dataset
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD

IMAGE_SIZE = 224


def benchmark_loader(args: argparse.Namespace) -> None:
    """Images per second of one core: both sides read the same JPEG files, batch by batch, in one process.

    CPU time is counted, so that other work on the machine disturbs little. Ours ends with uint8 batches (normalisation
    runs on the device), the usual pipelines with normalised float32 batches.
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

    base = 1.0
    for name, speed in speeds.items():
        base = base if "ours" in name else speed
        print(f"{name:<29}{speed:7.0f} images/s per core {speed / base:6.2f} x")


def measure(sides: dict[str, Callable[[], Iterable]], repeats: int) -> dict[str, float]:
    """Median images per second of CPU time, the sides taking turns; the first turn warms up."""
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
    """What torchvision's ImageFolder does: PIL, converted to RGB, then the transform."""

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
    """timm's own training transform; posterize floored at one bit, without which Pillow 13 stops it."""
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


def write_photos(folder: Path, count: int, quality: int) -> list[Path]:
    """JPEGs with the amplitude spectrum of photographs, 1 / frequency ** 1.4, in correlated colours: 0.34 bytes a pixel
    at quality 90, the same as real photographs of that size (Grocery Store Dataset)."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    loader = commands.add_parser(
        "loader", help="image loading against PIL and timm", description=benchmark_loader.__doc__
    )
    loader.add_argument("--images", type=int, default=192, help="different images (default: %(default)s)")
    loader.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    loader.add_argument("--jpeg_quality", type=int, default=90, help="default: %(default)s")
    loader.add_argument("--repeats", type=int, default=3, help="the median counts (default: %(default)s)")
    loader.set_defaults(run=benchmark_loader)
    args = parser.parse_args()
    disable_progress_bars()
    args.run(args)


if __name__ == "__main__":
    main()
