"""Image loading: our pipelines beside those of torchvision and timm, on the same files and batch by batch.

Our batches are uint8 (normalized on the device), those of the others are normalized float32. Small images are decoded
in advance on all sides, as by torchvision's CIFAR sets.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import PIL.Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from livt_hf.data import (
    FinetuneTransform,
    ImageDataset,
    PretrainTransform,
    TrainingBatches,
    load_long_tailed,
    training_loader,
)
from livt_hf.data.loader import limit_workers
from livt_hf.data.tools.prepare import prepare_dataset
from livt_hf.data.transforms import IMAGENET_MEAN, IMAGENET_STD

from .images import is_small

Loader = Callable[[int, int], Iterable[Any]]  # number of batches, number of workers -> batches of pixels


def loading_sides(files: list[Path], folder: Path, image_size: int, batch_size: int) -> dict[str, Loader]:
    """A loader of each pipeline; files that are decoded at every use are also prepared (`livt dataset prepare`).

    Args:
        folder: contains ``images``, the folder of the files.
    """
    given = load_long_tailed(folder / "images")["train"]
    sources = {"": given}
    if not is_small(image_size):
        prepare_dataset(load_long_tailed(folder / "images"), folder / "prepared", num_workers=0)
        sources[", prepared"] = load_long_tailed(folder / "prepared")["train"]
    pretrain = PretrainTransform(image_size, num_patches=(image_size // (4 if is_small(image_size) else 16)) ** 2)
    finetune = FinetuneTransform(image_size)
    sides = {"pretraining, PIL reference": reference_loader(files, image_size, pil_pretrain_transform, batch_size)}
    sides |= {f"pretraining, ours{name}": our_loader(rows, pretrain, batch_size) for name, rows in sources.items()}
    sides["fine-tuning, timm"] = reference_loader(files, image_size, timm_finetune_transform, batch_size)
    sides |= {f"fine-tuning, ours{name}": our_loader(rows, finetune, batch_size) for name, rows in sources.items()}
    return sides


def speed_per_core(sides: dict[str, Loader], batches: int, repeats: int) -> dict[str, list[float]]:
    """Images per second of CPU time in this process in each turn, so that other load on the machine matters little."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, loader in sides.items():
            start, images = time.process_time(), 0
            for pixels in loader(batches, 0):
                images += len(pixels)
            if repeat:  # the first turn is warm-up
                speeds[name].append(images / (time.process_time() - start))
    return speeds


def speed_with_workers(loader: Loader, batches: int, num_workers: int) -> float:
    """Images per second from the first batch, when all workers have started, to the last.

    Nothing else happens meanwhile, so that no batch waits in the queue.
    """
    loaded = iter(loader(batches + 1, num_workers))
    next(loaded)
    start, images = time.perf_counter(), 0
    for pixels in loaded:
        images += len(pixels)
    return images / (time.perf_counter() - start)


def our_loader(rows: Any, transform: Callable[..., Any], batch_size: int) -> Loader:
    """The loader of training."""
    dataset = ImageDataset(rows, transform)

    def load(batches: int, num_workers: int) -> Iterable[Any]:
        sampler = TrainingBatches(len(dataset), batch_size, stop_step=batches)
        return (batch["pixel_values"] for batch in training_loader(dataset, sampler, num_workers))

    return load


def reference_loader(files: list[Path], image_size: int, transform: Callable[[int], Any], batch_size: int) -> Loader:
    """A DataLoader over images opened by PIL."""
    dataset = Files(files, transform(image_size), in_memory=is_small(image_size))

    def load(batches: int, num_workers: int) -> Iterable[Any]:
        sampler = RandomSampler(dataset, num_samples=batches * batch_size)
        return DataLoader(dataset, batch_size, sampler=sampler, num_workers=limit_workers(num_workers))

    return load


class Files(Dataset):
    """As torchvision's ImageFolder or, in memory, its CIFAR sets: PIL, conversion to RGB, transform."""

    def __init__(self, files: list[Path], transform: Callable[..., Any], in_memory: bool):
        self.files, self.transform = files, transform
        self.images = [self._read(file) for file in files] if in_memory else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self._read(self.files[index]) if self.images is None else self.images[index])

    @staticmethod
    def _read(file: Path) -> PIL.Image.Image:
        with PIL.Image.open(file) as image:
            return image.convert("RGB")


def pil_pretrain_transform(image_size: int) -> Any:
    """MAE's augmentation as in its official code."""
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(0.2, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def timm_finetune_transform(image_size: int) -> Any:
    """timm's training transform, with posterize limited to at least one bit, as Pillow 13 requires."""
    transform = create_transform(
        image_size,
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
