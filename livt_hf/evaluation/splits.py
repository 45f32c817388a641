"""The splits of a dataset: opening them, choosing the one to evaluate on, and what they lack.

What can be lacking: images to measure a class with, more than a single image to learn it from, and a class of the
training split for the images of another split.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from .. import data
from ..data.long_tail import dataset_labels
from ..data.table import left_out
from ..files import read_run
from ..reporting.coverage import coverage_sentences

logger = logging.getLogger(__name__)


def open_dataset(
    dataset: str | Path | DatasetDict, split: str | None = None, **data_options: Any
) -> tuple[DatasetDict, str]:
    """The splits of a dataset, loaded by `load_long_tailed` unless it is loaded already, and its name for messages.

    Raises:
        ValueError: no such dataset, or it has no split ``split``.
    """
    if isinstance(dataset, DatasetDict):
        splits, name = dataset, "a DatasetDict"
    else:
        splits, name = data.load_long_tailed(dataset, **data_options), str(dataset)
    if split is not None and split not in splits:
        option = {"validation": "val_fraction", "test": "test_fraction"}.get(split)
        hint = f", or give the --{option} that the model was trained with" if option and len(splits) == 1 else ""
        raise ValueError(f"split: {name} has no split {split!r}; choose one of {', '.join(splits)}{hint}")
    return splits, name


def held_out_as_trained(model: str | Path, dataset: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load_long_tailed` with the ``val_fraction`` and ``test_fraction`` of a model's training run.

    Without them, or with others, images that the model was trained on would be evaluated; the log says so.

    Args:
        model: folder of the model; nothing is known of others.
        dataset: the source; fractions are those of training if it is the same.
    """
    options, record = dict(options), read_run(Path(model)) if Path(model).is_dir() else None
    trained = (record or {}).get("arguments", {})
    if not trained or Path(str(trained.get("dataset"))).absolute() != Path(str(dataset)).absolute():
        return options
    for name in ("val_fraction", "test_fraction"):
        before, now = trained.get(name), options.get(name)
        if before is not None and now is None:
            options[name] = before
            logger.info(f"{name}: {before:g}, as in training")
        elif before != now:
            trained_with = "none" if before is None else f"{before:g}"
            logger.warning(
                f"{name}: {model} was trained with {trained_with}: with {now:g}, it may be evaluated on images that it "
                "was trained on"
            )
    return options


def has_evaluation_split(splits: DatasetDict) -> bool:
    """Whether there is a test or a validation split."""
    return "test" in splits or "validation" in splits


def split_to_evaluate(splits: DatasetDict, dataset: str) -> str:
    """ "test", or "validation", which the log then says, if there is no test split.

    Raises:
        ValueError: there is neither.
    """
    if "test" in splits:
        return "test"
    if "validation" in splits:
        logger.info(f"{dataset} has no test split: the validation split is used")
        return "validation"
    raise ValueError(
        f"split: {dataset} has neither a test nor a validation split; give the --val_fraction or --test_fraction that "
        f"the model was trained with, or choose one of {', '.join(splits)} with --split"
    )


def split_coverage(splits: Mapping[str, Dataset], class_counts: Mapping[str, int]) -> dict[str, Any]:
    """What the splits lack; the entry ``coverage`` of results.json.

    Args:
        splits: of a dataset; those to evaluate on are looked at. Their classes are matched with the model's by name.
        class_counts: training images of each class of the model, by name, in label order.

    Returns:
        ``classes``: their number; ``without_images``: ``{split: [class names]}``; ``single_training_image``: class
        names; ``left_out``: ``{split: {class name: images}}``, images of classes that the training split lacks.
        Splits that lack nothing are left out.

    Raises:
        ValueError: a split has classes that the model does not have.
    """
    names = list(class_counts)
    without, unknown = {}, {}
    for split, images in ((name, splits[name]) for name in splits if name != "train"):
        label_of = data.match_labels(images.features["label"].names, names, "the dataset")
        found = np.bincount(label_of[dataset_labels(images)], minlength=len(names))  # (C,)
        without[split] = [name for name, count in zip(names, found, strict=True) if not count]
        unknown[split] = left_out(images)
    return {
        "classes": len(names),
        "without_images": {split: lacking for split, lacking in without.items() if lacking},
        "single_training_image": [name for name, count in class_counts.items() if count == 1],
        "left_out": {split: counts for split, counts in unknown.items() if counts},
    }


def log_coverage(coverage: Mapping[str, Any]) -> None:
    """One line for each thing that is lacking. Images that were left out have been reported when they were loaded."""
    for sentence in coverage_sentences({**coverage, "left_out": {}}):
        logger.info(sentence)
