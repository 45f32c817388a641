"""Training data of both stages: splits, transformed samples, order of the batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from ..class_names import check_same_names
from ..config.groups import DataArguments, OptimizerArguments
from ..data import ImageDataset, TrainingBatches, class_counts, load_long_tailed, on_device
from ..data.streamed_evaluation import evaluation_splits
from ..data.streaming import StreamedSamples, open_stream
from ..models.configuration_livt import ordered_class_counts
from ..optimization import Schedule
from .stage_run import StageRun


@dataclass(frozen=True)
class LoadedImages:
    """Images before a transform is chosen.

    Attributes:
        splits: the loaded dataset; of a stream only validation and test, and only if they are to be evaluated.
        class_counts: training images per class, in label order.
        samples: ``samples(transform, seed=..., ...)`` gives the transformed training images.
    """

    splits: DatasetDict
    class_counts: dict[str, int]
    samples: Callable[..., ImageDataset | StreamedSamples]


@dataclass(frozen=True)
class TrainingData:
    """Training images and their order.

    Attributes:
        splits: as in `LoadedImages`.
        dataset: transformed training images.
        batches: micro-batches of this process.
    """

    splits: DatasetDict
    dataset: ImageDataset | StreamedSamples
    batches: TrainingBatches

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return self.dataset.num_images


def load_images(args: DataArguments, seed: int, world: tuple[int, int], evaluation: bool = False) -> LoadedImages:
    """Load or stream the dataset; of a stream, each of ``world`` (number of processes, index) gets its shards.

    Args:
        evaluation: also open the validation and test split of a stream (`streamed_evaluation`).
    """
    if not args.streaming:
        splits = load_long_tailed(args.dataset, **args.data_options(seed))
        return LoadedImages(splits, class_counts(splits), functools.partial(ImageDataset, splits["train"]))
    for option, what in (("imbalance_factor", "subsampled"), ("val_fraction", "divided"), ("test_fraction", "divided")):
        if getattr(args, option) is not None:
            raise ValueError(f"{option}: a stream cannot be {what}; leave out one of the two")
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    stream = open_stream(args.dataset, **columns, class_counts_file=args.class_counts)
    samples = functools.partial(StreamedSamples, stream, num_processes=world[0], process_index=world[1])
    splits = evaluation_splits(args.dataset, stream) if evaluation else DatasetDict()
    return LoadedImages(splits, stream.class_counts, samples)


def training_data(
    images: LoadedImages, transform: Callable[..., Any], run: StageRun, batch_size: int, accumulation_steps: int
) -> TrainingData:
    """Samples and batches of this process; unreadable images are listed in ``bad_images.log`` of the run's folder."""
    seed, log = run.args.seed, run.folder / "bad_images.log"
    dataset = images.samples(transform, seed=seed, max_bad_images=run.args.max_bad_images, bad_images_log=log)
    batches = TrainingBatches(dataset.num_images, batch_size, accumulation_steps, *run.world, seed=seed)
    return TrainingData(images.splits, dataset, batches)


def plan_schedule(args: OptimizerArguments, batches: TrainingBatches) -> Schedule:
    """Length and learning rate of a run on these batches."""
    return Schedule.plan(
        batches.steps_per_epoch,
        batches.global_batch_size,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        max_steps=args.max_steps,
        base_lr=args.base_lr,
        min_lr=args.min_lr,
    )


def check_labels(config: Any, dataset: ImageDataset | StreamedSamples) -> None:
    """ValueError unless label i of the training images is class i of the model."""
    found, expected = dataset.class_names, list(ordered_class_counts(config))
    check_same_names(expected, found, "the model", "the training images")
    if found != expected:
        label = next(label for label, name in enumerate(found) if name != expected[label])
        raise ValueError(
            f"class_counts: label {label} is {found[label]!r} in the training images, and {expected[label]!r} in the "
            "model; give both the same order"
        )


class EpochLoader:
    """One iterator per epoch, as Trainer expects, over a single loader that does not restart between epochs.

    The first iterator starts at the trainer's current step, so that a resumed run continues where it stopped.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.dataset = trainer.train_dataset  # read by Trainer
        self.micro_batches: Generator[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self.trainer.training_batches().steps_per_epoch * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state, args = self.trainer.state, self.trainer.args
        if self.micro_batches is None:
            batches = self.trainer.training_batches(state.global_step, state.max_steps)
            pin_memory = args.device.type == "cuda"
            loader = self.dataset.loader(batches, args.dataloader_num_workers, pin_memory)
            self.micro_batches = on_device(loader, args.device)
        if self.trainer.control.should_training_stop:  # decided before the first step
            return
        done = state.global_step * args.gradient_accumulation_steps % len(self)
        for _ in range(len(self) - done):
            batch = next(self.micro_batches, None)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers, which otherwise would be killed when the program exits."""
        if self.micro_batches is not None:
            self.micro_batches.close()
