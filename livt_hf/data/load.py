"""One argument names the images, wherever they lie: ``load_long_tailed(source, ...)``."""

from __future__ import annotations

import difflib
from pathlib import Path

import pyarrow.parquet as pq
from datasets import DatasetDict

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
from .sources.parquet import find_parquet, load_parquet_folder

NAMES = ("digits", *CIFAR_SETS, *CIFAR_BAL_SETS, *LIST_SETS, "imagenet-bal")


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
) -> DatasetDict:
    """A DatasetDict with columns "image" (encoded, not decoded) and "label" (ClassLabel), train split long-tailed.

    Args:
        source: one of
            - "digits";
            - "cifar10-lt", "cifar100-lt": from the Hub, or a folder ``data_dir`` (Parquet or images);
            - "cifar10-bal", "cifar100-bal": as many of the same images, but equally many of each class;
            - "imagenet-lt", "places-lt", "inat18": images under ``data_dir``, the official lists there or as named;
            - "imagenet-bal": 160 images a class of ImageNet's folders ``data_dir/train`` (and ``data_dir/val``);
            - a folder of images (``train/CLASS/*.jpg`` or ``CLASS/*.jpg``), of Parquet or Arrow files;
            - a CSV file of ``path,label``, which is the training list;
            - the id of a dataset on the Hub.
        imbalance_factor: cut a long tail into the training split (`long_tailed_indices`); None keeps the data as they
            are, except for digits (50) and the CIFAR sets (100). For the balanced CIFAR sets, the tail whose number of
            images they have.
        imbalance_profile: "exp" or "step".
        seed: which images the tail keeps.
        data_dir: where the images of a named set or of lists lie.
        image_column, label_column: which columns to use, if their types or names do not tell.
        train_list, val_list, test_list: files with lines ``path label`` (or CSV), paths relative to ``data_dir``.
    """
    name = str(source)
    lists = {"train": train_list, "validation": val_list, "test": test_list}
    given_lists = {split: Path(file).expanduser() for split, file in lists.items() if file is not None}
    root = None if data_dir is None else _existing_folder(data_dir, "--data_dir")

    if name in LIST_SETS:
        splits = _load_list_set(name, root, given_lists)
    elif given_lists or name.endswith(".csv"):
        splits = _load_own_lists(name, root, given_lists, image_column, label_column)
    elif name in CIFAR_SETS:
        splits = _load_cifar(name, root, image_column, label_column)
        imbalance_factor = CIFAR_IMBALANCE_FACTOR if imbalance_factor is None else imbalance_factor
    elif name in CIFAR_BAL_SETS:
        splits = _load_cifar(CIFAR_BAL_SETS[name], root, image_column, label_column)
        labels = dataset_labels(splits["train"])
        tail = long_tailed_indices(labels, imbalance_factor or CIFAR_IMBALANCE_FACTOR, imbalance_profile, seed)
        kept = balanced_indices(labels, len(tail) // CIFAR_SETS[CIFAR_BAL_SETS[name]].classes, seed)
        splits["train"], imbalance_factor = splits["train"].select(kept), None
    elif root is not None and name != "imagenet-bal":
        raise ValueError(f"--data_dir {data_dir}: not used with --dataset {source}; leave it out")
    elif name == "imagenet-bal":
        splits = _load_imagenet_bal(root, seed)
    elif name == "digits":
        splits = load_digits_dataset()
        imbalance_factor = DIGITS_IMBALANCE_FACTOR if imbalance_factor is None else imbalance_factor
    elif Path(name).expanduser().is_dir():
        splits = load_folder(Path(name).expanduser(), image_column, label_column)
    elif HUB_ID.fullmatch(name) and not name.startswith("."):
        splits = load_hub(name, image_column, label_column)
    else:
        raise _unknown_source(name)

    if imbalance_factor is not None:
        labels = dataset_labels(splits["train"])
        kept = long_tailed_indices(labels, imbalance_factor, imbalance_profile, seed)
        splits["train"] = splits["train"].select(kept)
    return splits


def load_folder(folder: Path, image_column: str | None = None, label_column: str | None = None) -> DatasetDict:
    """A local folder of Arrow or Parquet files, or of images."""
    if is_arrow_folder(folder):
        return load_arrow_folder(folder, image_column, label_column)
    if arrow := find_arrow(folder):
        return load_arrow_files(arrow, folder, image_column, label_column)
    if parquet := find_parquet(folder):
        return load_parquet_folder(parquet, image_column, label_column)
    return load_image_folder(folder)


def _load_list_set(name: str, root: Path | None, lists: dict[str, Path]) -> DatasetDict:
    known = LIST_SETS[name]
    if root is None:
        raise ValueError(f"--dataset {name}: needs --data_dir, the folder that the paths in its lists start from")
    for split, file in known.lists.items():
        if split not in lists and (root / file).is_file():
            lists[split] = root / file
    if "train" not in lists:
        raise ValueError(
            f"--dataset {name}: needs its training list; put {known.lists['train']} into {root} or name it with "
            "--train_list"
        )
    splits = load_lists(lists, root, rename=with_imagenet_names if name == "imagenet-lt" else None)
    warn_of_differences(name, splits)
    return splits


def _load_own_lists(
    name: str, root: Path | None, lists: dict[str, Path], image_column: str | None, label_column: str | None
) -> DatasetDict:
    source = Path(name).expanduser()
    if name.endswith(".csv"):
        lists.setdefault("train", source)
        root = root or source.parent
    elif root is None:
        root = _existing_folder(name, "--dataset")
    if "train" not in lists:
        raise ValueError(f"--dataset {name}: lists are given, but no training list; name it with --train_list")
    return load_lists(lists, root, image_column, label_column)


def _load_cifar(name: str, root: Path | None, image_column: str | None, label_column: str | None) -> DatasetDict:
    cifar = CIFAR_SETS[name]
    if root is None:
        try:
            splits = load_hub(cifar.hub_id, image_column, label_column or cifar.label_column)
        except ValueError as error:
            raise ValueError(f"{error}; a folder that holds the images can be named with --data_dir") from error
    else:
        splits = load_folder(root, image_column, label_column or _column_if_there(root, cifar.label_column))
    found = splits["train"].features["label"].num_classes
    if found != cifar.classes:
        raise ValueError(f"--dataset {name}: {root or cifar.hub_id} has {found} classes, not {cifar.classes}")
    return splits


def _column_if_there(folder: Path, column: str) -> str | None:
    files = find_parquet(folder).get("train", [])
    return column if files and column in pq.read_schema(files[0]).names else None


def _load_imagenet_bal(root: Path | None, seed: int) -> DatasetDict:
    if root is None:
        raise ValueError("--dataset imagenet-bal: needs --data_dir, the folder of ImageNet's train/ and val/")
    splits = load_image_folder(root, rename=with_imagenet_names)
    kept = balanced_indices(dataset_labels(splits["train"]), IMAGENET_BAL_IMAGES_PER_CLASS, seed)
    splits["train"] = splits["train"].select(kept)
    return splits


def _existing_folder(folder: str | Path, option: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"{option} {folder}: no such folder")
    return path


def _unknown_source(name: str) -> ValueError:
    if Path(name).expanduser().exists():
        return ValueError(f"--dataset {name}: is a file; give the folder that holds the images, or a .csv list")
    nearest = difflib.get_close_matches(name, NAMES, n=1)
    hint = (
        f"did you mean {nearest[0]!r}?"
        if nearest
        else f"give an existing folder, a Hub id or one of: {', '.join(NAMES)}"
    )
    return ValueError(f"--dataset {name}: neither an existing folder nor a known name; {hint}")
