"""``load_long_tailed(source, ...)``: one argument names the images, wherever they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

from ..config.hub_ids import similar_name
from .holdout import hold_out
from .long_tail import balanced_indices, dataset_labels, long_tailed_indices
from .sources.benchmarks import (
    CIFAR_BAL_SETS,
    CIFAR_IMBALANCE_FACTOR,
    CIFAR_SETS,
    DIGITS_IMBALANCE_FACTOR,
    IMAGENET_BAL_IMAGES_PER_CLASS,
    LIST_SETS,
    load_digits_dataset,
    warn_of_differences,
    with_imagenet_names,
)
from .sources.hub import HUB_ID, find_arrow, is_arrow_folder, load_arrow_files, load_arrow_folder, load_hub
from .sources.image_folder import load_image_folder
from .sources.lists import load_lists
from .sources.parquet import find_parquet, find_unnamed_parquet, load_parquet_folder
from .sources.tables import SPREADSHEETS, TABLE_SUFFIXES


def load_long_tailed(
    source: str | Path,
    *,
    imbalance_factor: float | None = None,
    imbalance_profile: str = "exp",
    seed: int = 0,
    data_dir: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_list: str | Path | None = None,
    val_list: str | Path | None = None,
    test_list: str | Path | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
) -> DatasetDict:
    """Load a dataset and make its training split long-tailed.

    Args:
        source: one of
            - "digits";
            - "cifar10-lt", "cifar100-lt": from the Hub, or from a folder ``data_dir`` (Parquet or images);
            - "cifar10-bal", "cifar100-bal": the size of the long-tailed set, with equally many images per class;
            - "imagenet-lt", "places-lt", "inat18": images in ``data_dir``, with the official lists there or as given;
            - "imagenet-bal": 160 images per class from ImageNet's ``data_dir/train`` (and ``data_dir/val``);
            - a folder of images (``train/CLASS/*.jpg``, ``CLASS/*.jpg`` or with metadata.csv) or of Parquet or Arrow
              files;
            - a table of ``path,label`` (.csv, .tsv, .txt, .jsonl): the training list, or all splits if it has a column
              "split"; or a Parquet file with images;
            - the id of a dataset on the Hub.
        imbalance_factor: cut the training split to this ratio of the largest to the smallest class
            (`long_tailed_indices`). None keeps all images, except for digits (50) and the CIFAR sets (100). For the
            balanced CIFAR sets, the factor of the long tail with the same number of images.
        imbalance_profile: "exp" or "step".
        seed: selects which images the tail keeps.
        data_dir: folder of the images of a benchmark or of list files.
        image_column, label_column: columns to use, if types and names leave a choice.
        train_list, val_list, test_list: files with lines ``path label``, or tables; paths relative to ``data_dir``.
        val_fraction, test_fraction: fraction of each class's training images to take for a split that is missing
            (`holdout`), before the long tail is cut. They do not depend on the seed.

    Returns:
        Splits "train" and, where available, "validation" and "test", with the columns "image" (encoded, not decoded)
        and "label" (ClassLabel).

    Raises:
        ValueError: data that cannot be found or read, or options that do not fit them.
    """
    lists = {"train": train_list, "validation": val_list, "test": test_list}
    request = _Request(
        name=str(source),
        data_dir=None if data_dir is None else _existing_folder(data_dir, "data_dir"),
        lists={split: Path(file).expanduser() for split, file in lists.items() if file is not None},
        image_column=image_column,
        label_column=label_column,
        seed=seed,
    )
    is_benchmark = request.name in LIST_SETS or (request.name in BENCHMARKS and not request.lists)
    benchmark = BENCHMARKS[request.name] if is_benchmark else _Benchmark(_load_own)
    splits = hold_out(benchmark.load(request), val_fraction, test_fraction, request.name)
    factor = benchmark.imbalance_factor if imbalance_factor is None else imbalance_factor
    if factor is not None:
        splits["train"] = cut_long_tail(splits["train"], factor, imbalance_profile, seed, benchmark.balanced)
    return splits


def cut_long_tail(
    train: Dataset, imbalance_factor: float, profile: str = "exp", seed: int = 0, balanced: bool = False
) -> Dataset:
    """The images kept by `long_tailed_indices`; if ``balanced``, as many in total but equally many per class."""
    labels = dataset_labels(train)
    kept = long_tailed_indices(labels, imbalance_factor, profile, seed)
    if balanced:
        kept = balanced_indices(labels, len(kept) // train.features["label"].num_classes, seed)
    return train.select(kept)


def load_folder(folder: Path, image_column: str | None = None, label_column: str | None = None) -> DatasetDict:
    """A local folder of Arrow or Parquet files, or of images."""
    if is_arrow_folder(folder):
        return load_arrow_folder(folder, image_column, label_column)
    if arrow := find_arrow(folder):
        return load_arrow_files(arrow, folder, image_column, label_column)
    if parquet := find_parquet(folder) or find_unnamed_parquet(folder):
        return load_parquet_folder(parquet, image_column, label_column)
    return load_image_folder(folder, None, image_column, label_column)


@dataclass(frozen=True)
class _Request:
    """The arguments of `load_long_tailed` that a loader may use; ``lists`` by split."""

    name: str
    data_dir: Path | None
    lists: dict[str, Path]
    image_column: str | None
    label_column: str | None
    seed: int


def _load_own(request: _Request) -> DatasetDict:
    """The user's own images: lists, a folder, or a dataset on the Hub."""
    name, folder = request.name, Path(request.name).expanduser()
    if request.lists or (folder.suffix.lower() in TABLE_SUFFIXES and not folder.is_dir()):
        return _load_own_lists(request)
    _check_no_data_dir(request)
    if folder.suffix.lower() == ".parquet" and folder.is_file():
        return load_parquet_folder({"train": [folder]}, request.image_column, request.label_column)
    if folder.is_dir():
        return load_folder(folder, request.image_column, request.label_column)
    if HUB_ID.fullmatch(name) and not name.startswith(".") and not folder.is_file():
        return load_hub(name, request.image_column, request.label_column)
    raise _unknown_source(name)


def _load_own_lists(request: _Request) -> DatasetDict:
    source, root, lists = Path(request.name).expanduser(), request.data_dir, dict(request.lists)
    if source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir():
        lists.setdefault("train", source)
        root = root or source.parent
    elif root is None:
        root = _existing_folder(request.name, "dataset")
    if "train" not in lists:
        raise ValueError("train_list: none was given beside the other lists; name the training list")
    return load_lists(lists, root, request.image_column, request.label_column)


def _load_digits(request: _Request) -> DatasetDict:
    _check_no_data_dir(request)
    return load_digits_dataset()


def _load_list_set(request: _Request) -> DatasetDict:
    name, root, lists = request.name, request.data_dir, dict(request.lists)
    if root is None:
        raise ValueError(f"dataset: {name!r} needs --data_dir, the folder that the paths in its lists start from")
    official = LIST_SETS[name].lists
    for split, file in official.items():
        if split not in lists and (root / file).is_file():
            lists[split] = root / file
    if "train" not in lists:
        raise ValueError(
            f"dataset: {name!r} needs its training list; put {official['train']} into {root} or name it with "
            "--train_list"
        )
    splits = load_lists(lists, root, rename=with_imagenet_names if name == "imagenet-lt" else None)
    warn_of_differences(name, splits)
    return splits


def _load_cifar(request: _Request) -> DatasetDict:
    cifar, folder = CIFAR_SETS[CIFAR_BAL_SETS.get(request.name, request.name)], request.data_dir
    if folder is None:
        try:
            splits = load_hub(cifar.hub_id, request.image_column, request.label_column or cifar.label_column)
        except ValueError as error:
            raise ValueError(f"{error}; or name a folder with the images as --data_dir") from error
    else:
        label_column = request.label_column or _column_if_there(folder, cifar.label_column)
        splits = load_folder(folder, request.image_column, label_column)
    found = splits["train"].features["label"].num_classes
    if found != cifar.classes:
        raise ValueError(
            f"dataset: {request.name!r} has {cifar.classes} classes, but {folder or cifar.hub_id} has {found}; check "
            "--data_dir and --label_column"
        )
    return splits


def _column_if_there(folder: Path, column: str) -> str | None:
    files = find_parquet(folder).get("train", [])
    return column if files and column in pq.read_schema(files[0]).names else None


def _load_imagenet_bal(request: _Request) -> DatasetDict:
    if request.data_dir is None:
        raise ValueError("dataset: 'imagenet-bal' needs --data_dir, the folder of ImageNet's train/ and val/")
    splits = load_image_folder(request.data_dir, rename=with_imagenet_names)
    kept = balanced_indices(dataset_labels(splits["train"]), IMAGENET_BAL_IMAGES_PER_CLASS, request.seed)
    splits["train"] = splits["train"].select(kept)
    return splits


@dataclass(frozen=True)
class _Benchmark:
    """How to load a set by its name, its default imbalance factor, and whether it is balanced (`cut_long_tail`)."""

    load: Callable[[_Request], DatasetDict]
    imbalance_factor: float | None = None
    balanced: bool = False


BENCHMARKS = {
    "digits": _Benchmark(_load_digits, DIGITS_IMBALANCE_FACTOR),
    **dict.fromkeys(CIFAR_SETS, _Benchmark(_load_cifar, CIFAR_IMBALANCE_FACTOR)),
    **dict.fromkeys(CIFAR_BAL_SETS, _Benchmark(_load_cifar, CIFAR_IMBALANCE_FACTOR, balanced=True)),
    **dict.fromkeys(LIST_SETS, _Benchmark(_load_list_set)),
    "imagenet-bal": _Benchmark(_load_imagenet_bal),
}


def _existing_folder(folder: str | Path, option: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"{option}: {str(folder)!r} is not a folder; name an existing one")
    return path


def _check_no_data_dir(request: _Request) -> None:
    if request.data_dir is not None:
        raise ValueError(f"data_dir: {str(request.data_dir)!r} is not used with --dataset {request.name}; leave it out")


def _unknown_source(name: str) -> ValueError:
    if Path(name).suffix.lower() in SPREADSHEETS:
        return ValueError(f"dataset: {name!r} is a spreadsheet; save it as CSV and name that file")
    if Path(name).expanduser().exists():
        return ValueError(f"dataset: {name!r} is a file; name the folder of the images, or a table (.csv, .tsv)")
    near = similar_name(name, "dataset", BENCHMARKS)
    hint = near or f" give an existing folder, a Hub id or one of: {', '.join(BENCHMARKS)}"
    return ValueError(f"dataset: {name!r} is neither an existing folder nor a known name;{hint}")
