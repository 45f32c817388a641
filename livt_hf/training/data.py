"""Training data of both stages: the images and their splits, transformed samples and the order of the batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ..config.arguments import StageArguments
from ..data import ImageDataset, TrainingBatches, load_long_tailed
from ..data.streaming import ImageStream, StreamedSamples, open_stream, training_dataset
from ..optimization import Schedule


@dataclass(frozen=True)
class TrainingData:
    """What a stage trains on.

    Attributes:
        splits: the loaded dataset; empty where the training images are streamed.
        num_images: training images.
        dataset: transformed training images.
        batches: their order, of this process.
    """

    splits: DatasetDict
    num_images: int
    dataset: ImageDataset | StreamedSamples
    batches: TrainingBatches


def load_images(args: StageArguments) -> tuple[DatasetDict, Dataset | ImageStream]:
    """The splits of the dataset, and its training images; streamed ones come without splits."""
    if not args.streaming:
        splits = load_long_tailed(args.dataset, **args.data_options())
        return splits, splits["train"]
    if args.imbalance_factor is not None:
        raise ValueError("imbalance_factor: a stream is taken as it is; leave out --streaming to cut a long tail")
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    return DatasetDict(), open_stream(args.dataset, **columns, class_counts_file=args.class_counts)


def training_data(
    splits: DatasetDict,
    images: Dataset | ImageStream,
    transform: Callable[..., Any],
    world: tuple[int, int],
    *,
    batch_size: int,
    accumulation_steps: int,
    seed: int,
    max_bad_images: int,
    output_dir: Path,
) -> TrainingData:
    """Samples and batches of this process; unreadable images are listed in ``output_dir/bad_images.log``."""
    log = output_dir / "bad_images.log"
    dataset = training_dataset(images, transform, world, seed=seed, max_bad_images=max_bad_images, bad_images_log=log)
    batches = TrainingBatches(len(images), batch_size, accumulation_steps, *world, seed=seed)
    return TrainingData(splits, len(images), dataset, batches)


def plan_schedule(args: StageArguments, batches: TrainingBatches) -> Schedule:
    return Schedule.plan(
        batches.steps_per_epoch,
        batches.global_batch_size,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        max_steps=args.max_steps,
        base_lr=args.base_lr,
        min_lr=args.min_lr,
    )
