"""Streaming: train on images read from the Hub or from Parquet files, without a local copy.

The order comes from shuffled shards and a shuffle buffer, so it depends on the number of processes and workers and
changes when a run is resumed: this part of the determinism of `loader` does not apply. The class counts, which the
balanced losses need, are given by the user, or counted once and cached in a file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import torch
from datasets import Features, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from datasets.fingerprint import Hasher
from huggingface_hub import HfApi

from ..class_names import check_same_names
from .columns import choose_columns, log_label_choice, other_labels
from .dataset import check_bad_image_limit, log_bad_image, preserved_generators, sample_seed, seed_generators
from .decoding import decode_image
from .labels import check_single_labels
from .loader import ImageLoader, TrainingBatches, collate, ignore_stop_signals, limit_workers
from .sources.hub import HUB_ID, check_available, named_splits
from .sources.parquet import find_parquet, find_unnamed_parquet
from .sources.walk import describe_content

COUNTS_FOLDER = Path(datasets.config.HF_CACHE_HOME) / "livt_hf" / "class_counts"


@dataclass(frozen=True)
class ImageStream:
    """The training images of a streamed dataset.

    Attributes:
        images: rows with the two columns, images not decoded, labels as stored.
        image_column, label_column: names of the columns.
        class_counts: images per class, in label order.
        names: class name of each stored label, in label order.
        label_feature: type of the stored labels, in `datasets`.
    """

    images: IterableDataset
    image_column: str
    label_column: str
    class_counts: dict[str, int]
    names: dict[int | str, str]
    label_feature: object = None

    def __len__(self) -> int:
        return sum(self.class_counts.values())


def load_stream(
    source: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_counts: Mapping[str, int] | None = None,
    counts_folder: str | Path = COUNTS_FOLDER,
) -> ImageStream:
    """Open the training split of a Hub dataset or a folder of Parquet files without downloading or copying it.

    Args:
        class_counts: ``{name: count}``, if known. Otherwise the labels are counted, which reads the dataset once; the
            result is cached in ``counts_folder`` until the files or the Hub revision change.

    Raises:
        ValueError: a source that cannot be streamed, or class counts that do not match its classes.
    """
    images = _open(source)
    features = images.features or images._resolve_features().features
    is_chosen = label_column is not None
    image_column, label_column = choose_columns(features, image_column, label_column, source)
    label_feature = features[label_column]
    check_single_labels(Features({label_column: label_feature}).arrow_schema.types[0], label_column, source)
    names_in_order = getattr(features[label_column], "names", None)
    images = images.cast_column(image_column, Image(decode=False)).select_columns([image_column, label_column])

    if class_counts is None:
        key = Hasher.hash((*_version(source), label_column))
        class_counts = _cached_counts(
            images.select_columns(label_column), names_in_order, Path(counts_folder) / f"{key}.json", source
        )
    if not is_chosen:
        log_label_choice(label_column, len(class_counts), other_labels(features, label_column, 0, lambda name: None))
    if names_in_order is None:
        stored = {_stored(name, features[label_column]): name for name in class_counts}
        counts = dict(class_counts)
        return ImageStream(images, image_column, label_column, counts, stored, label_feature)
    check_same_names(names_in_order, class_counts, str(source), "class_counts")
    in_order = {name: class_counts[name] for name in names_in_order}
    names: dict[int | str, str] = dict(enumerate(names_in_order))
    return ImageStream(images, image_column, label_column, in_order, names, label_feature)


def _open(source: str | Path) -> IterableDataset:
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = [str(file) for file in _train_files(folder)]
        if not files:
            raise ValueError(
                f"dataset: {str(source)!r} has no train-*.parquet ({describe_content(folder)}); only Parquet folders "
                "can be streamed: leave out --streaming"
            )
        return datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
    return open_splits(source)["train"]


def open_splits(hub_id: str | Path) -> dict[str, IterableDataset]:
    """The splits of a dataset on the Hub, as streams."""
    if not HUB_ID.fullmatch(str(hub_id)):
        raise ValueError(
            f"dataset: {str(hub_id)!r} is neither a folder nor a Hub id; leave out --streaming for other sources"
        )
    check_available(str(hub_id))
    try:
        splits = datasets.load_dataset(str(hub_id), streaming=True)
    except Exception as error:  # many kinds, from `datasets`, the client and the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else "check the id"
        raise ValueError(f"dataset: {str(hub_id)!r} cannot be streamed from the Hub ({reason}); {hint}") from error
    return named_splits(splits, hub_id)


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split of a folder."""
    return find_parquet(folder) or find_unnamed_parquet(folder)


def _train_files(folder: Path) -> list[Path]:
    return parquet_splits(folder).get("train", [])


def _version(source: str | Path) -> tuple[object, ...]:
    """Cache key of the images: path and files of a folder (names, sizes, times), or id and revision on the Hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        stats = [(str(file.relative_to(folder)), file.stat()) for file in _train_files(folder)]
        return str(folder.resolve()), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    try:
        return str(source), HfApi().dataset_info(str(source), timeout=10).sha
    except Exception:  # many kinds, from the client and the network; then the id alone is the key
        return (str(source),)


def _cached_counts(labels: IterableDataset, names: list[str] | None, file: Path, source: object) -> dict[str, int]:
    if file.is_file():
        return json.loads(file.read_text())
    found = Counter(label for row in labels for label in row.values())
    unlabeled = any(label is None or label != label for label in found)  # NaN is a missing label in pandas
    if unlabeled or (names is not None and not set(found) <= set(range(len(names)))):
        raise ValueError(f"{source}: has rows without a label or with one outside 0 to {len(names or found) - 1}")
    if names is None:
        values = sorted(found)
        counts = {name: found[value] for name, value in zip(_names_of(values), values, strict=True)}
    else:
        counts = {name: found[label] for label, name in enumerate(names)}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(counts))
    unfinished.replace(file)
    return counts


def _names_of(values: list[int | str]) -> list[str]:
    """As `table.class_names`: a boolean is "true", not "True"."""
    return pa.array(values).cast(pa.string()).to_pylist()


def _stored(name: str, feature: datasets.Value) -> int | str:
    return pa.scalar(name).cast(feature.pa_type).as_py()


class StreamedSamples(torch.utils.data.IterableDataset):
    """Endless training samples of one process, in the format of `ImageDataset`; workers share its shards.

    Unreadable images are skipped, and counted and logged in the first epoch.

    Args:
        transform: maps an image, uint8 (3, H, W), to a dict of tensors.
        num_processes, process_index: the shards are divided among the processes.
        shuffle_buffer: number of rows that are shuffled in memory.
        max_bad_images, bad_images_log: see `ImageDataset`.
    """

    labels = None  # unknown before an image is read

    def __init__(
        self,
        stream: ImageStream,
        transform: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        max_bad_images: int = 100,
        bad_images_log: str | Path | None = None,
    ):
        self.stream = stream
        self.transform = transform
        self.num_processes = num_processes
        self.process_index = process_index
        self.seed = seed
        self.start_step = 0  # so that a resumed run does not start with the images it has just seen
        self.shuffle_buffer = shuffle_buffer
        self.max_bad_images = max_bad_images
        self.bad_images_log = None if bad_images_log is None else Path(bad_images_log)
        self.num_bad_images = torch.zeros((), dtype=torch.int64).share_memory_()  # of all workers
        self.label_of = {stored: label for label, stored in enumerate(stream.names)}

    @property
    def num_images(self) -> int:
        """Images per epoch, over all processes."""
        return len(self.stream)

    @property
    def class_names(self) -> list[str]:
        """In label order."""
        return list(self.stream.class_counts)

    def loader(self, batches: TrainingBatches, num_workers: int, pin_memory: bool = False) -> ImageLoader:
        """Endless micro-batches of this process. Only the batch size and the start step of ``batches`` are used."""
        self.start_step = batches.start_step
        return ImageLoader(
            self,
            batch_size=batches.batch_size,
            drop_last=True,
            num_workers=min(limit_workers(num_workers), self.images().num_shards),
            pin_memory=pin_memory,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=ignore_stop_signals,
            collate_fn=collate,
            generator=torch.Generator(),
        )

    def images(self) -> IterableDataset:
        """Shuffled rows of this process."""
        seed = sample_seed(self.seed, self.start_step, 0) % 2**32
        shuffled = self.stream.images.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
        return split_dataset_by_node(shuffled, self.process_index, self.num_processes)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | int]]:
        images = self.images()
        info = torch.utils.data.get_worker_info()
        worker = self.process_index * 1024 + (info.id if info else 0)  # distinct for all workers
        drawn = itertools.count()
        for epoch in itertools.count():
            images.set_epoch(epoch)
            empty = True
            for row in images:
                number = next(drawn)
                try:
                    image = decode_image(row[self.stream.image_column], name=f"image {number} of the stream")
                except ValueError as error:
                    if epoch == 0:
                        self.num_bad_images += 1
                        log_bad_image(str(error), self.bad_images_log)
                        check_bad_image_limit(
                            int(self.num_bad_images), self.max_bad_images, self.bad_images_log, str(error)
                        )
                    continue
                empty = False
                with preserved_generators():
                    seed_generators(sample_seed(self.seed, worker, number))
                    sample = self.transform(image)
                yield {**sample, "labels": self.label_of[row[self.stream.label_column]], "index": number}
            if empty:  # more workers than shards, or no readable image
                return


def open_stream(
    source: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_counts_file: str | Path | None = None,
) -> ImageStream:
    """`load_stream` with the class counts read from a JSON file ``{name: count}``, if one is given."""
    counts = None
    if class_counts_file is not None:
        try:
            counts = json.loads(Path(class_counts_file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"class_counts: cannot read {str(class_counts_file)!r} as JSON: {error}") from None
    return load_stream(source, image_column=image_column, label_column=label_column, class_counts=counts)
