"""Evaluation: a checkpoint and a dataset -> predictions -> the content of results.json.

Probabilities are a softmax of the unadjusted logits, also for models trained with a binary cross-entropy, as in LiVT's
official evaluation. Models are loaded natively with their own image processor, so that the results are those of
`pipeline("image-classification", DIR)`. Only a few numbers are kept per image, so memory does not grow with the product
of images and classes.

Legend: C classes, P test priors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from .. import data
from ..class_names import check_same_names, class_names
from ..files import check_folder, read_run
from ..metrics import (
    bootstrap_intervals,
    calibration_error,
    class_confusion,
    confused_pairs,
    group_confusion,
    hardest_images,
    long_tail_accuracy,
    prediction_calibration,
    reliability_bins,
    selective_accuracy,
)
from ..models.loading import load_autoencoder, load_classifier
from ..models.modeling_livt_mae import reconstruct_images
from ..prior import ClassPrior
from ..reporting.charts import plot_reconstructions
from ..reporting.evaluation_report import write_report
from ..reporting.provenance import command_line, hardware, public_name, versions
from .examples import evenly_spaced, first_image_of_each_class, image_path, processed_images
from .prediction_file import write_predictions
from .predictions import ProcessorTransform, check_loader_options, choose_device, mean_and_std, predict_split
from .prior_shift import assumed_log_prior, long_tailed_priors, prior_accuracies
from .splits import held_out_as_trained, log_coverage, open_dataset, split_coverage, split_to_evaluate

MAX_CONFUSION_CLASSES = 200  # with more, results.json would consist of it; `confused_pairs` has the largest numbers

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    model: str | Path,
    dataset: str | Path | DatasetDict,
    *,
    output_dir: str | Path,
    split: str | None = None,
    mae: str | Path | None = None,
    test_prior: bool = False,
    tta: str = "none",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    **data_options: Any,
) -> dict[str, Any]:
    """Evaluate a saved classifier on one split of a dataset and write the report: `livt evaluate`.

    Args:
        model: folder or Hub id of an image classifier. If its config has no class counts, those of the dataset's train
            split define the shot groups.
        dataset: source for `livt_hf.data.load_long_tailed`, or a loaded dataset.
        output_dir: folder for results.json, report.md, report.html and the charts.
        split: split to evaluate on; by default the test split, or the validation split if there is no test split.
        mae: folder or Hub id of a masked autoencoder whose reconstructions are added to the report.
        test_prior: also report the accuracy under forward and backward long-tailed test distributions.
        tta: test-time ensembling, a key of `test_time.VIEWS`.
        data_options: further arguments of `load_long_tailed`, such as ``data_dir`` or ``imbalance_factor``.

    Returns:
        The content of results.json; the predictions of all images are in `PREDICTIONS_FILE` beside it.

    Raises:
        ValueError: no such model, dataset or split, or class names that differ.
    """
    check_loader_options(batch_size, num_workers)
    check_folder(output_dir)
    device = choose_device(device)
    classifier, image_processor = load_classifier(model)
    splits, name = open_dataset(dataset, split, **held_out_as_trained(model, dataset, data_options))
    split = split or split_to_evaluate(splits, name)
    counts_from = None
    if getattr(classifier.config, "class_counts", None) is None:
        counts_from = _take_class_counts(classifier.config, splits, str(model), name)
    results = evaluate_model(
        classifier,
        splits[split],
        image_processor,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        description={
            "model": str(model),
            "dataset": name,
            "split": split,
            "class_counts_from": counts_from,
            **_trained_part(model),
        },
        test_prior=test_prior,
        splits=splits,
        tta=tta,
        output_dir=output_dir,
    )
    log_coverage(results["coverage"])
    output_dir = Path(output_dir)
    if mae is not None:
        chart = output_dir / "reconstructions.png"
        results["reconstructions"] = draw_reconstructions(mae, splits[split], results["class_counts"], chart)
    write_report(results, output_dir, mistaken_images(results, splits[split]))
    return results


def _trained_part(model: str | Path) -> dict[str, Any]:
    """What its run has trained of a model, from run.json."""
    record = read_run(Path(model)) or {}
    adapter = record.get("arguments", {}).get("adapter", "none")
    parts = {"trained_parameters": record.get("trained_parameters"), "adapter": None if adapter == "none" else adapter}
    return parts if record else {}


def _take_class_counts(config: Any, splits: DatasetDict, model: str, dataset: str) -> str:
    """Set the class counts of a config to those of the train split; return where they are from."""
    if "train" not in splits:
        raise ValueError(
            f"model: the config of {model!r} has no class counts, and {dataset} has no train split to count; evaluate "
            "on a dataset with the training images"
        )
    config.class_counts = counts_by_model_name(splits["train"], config)
    source = f"train split of {public_name(dataset)}"
    logger.info(f"the config of {model} has no class counts: shot groups are defined by the {source}")
    return source


def counts_by_model_name(train: Dataset, config: Any) -> dict[str, int]:
    """Number of training images of each class of a model, by the model's class names.

    Args:
        train: train split, whose class names are matched with the model's by `match_labels`.
        config: of the model.

    Raises:
        ValueError: the split has other classes than the model.
    """
    names = class_names(config)
    counts = data.class_counts(train)
    label_of = data.match_labels(list(counts), names, "the dataset")
    found = {names[label]: count for label, count in zip(label_of, counts.values(), strict=True)}
    check_same_names(names, found, "the checkpoint", "the train split")
    return {name: found[name] for name in names}


def evaluate_model(
    model: PreTrainedModel,
    split: Dataset,
    image_processor: Any,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    description: Mapping[str, Any] | None = None,
    test_prior: bool = False,
    splits: Mapping[str, Dataset] | None = None,
    tta: str = "none",
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a classifier whose config has class counts on a split.

    Args:
        model: a `ViTForBalancedClassification`, or another image classifier with ``class_counts`` (training images by
            class name) in its config.
        split: images and labels as loaded by `livt_hf.data`. Classes are matched with the model's by name.
        image_processor: the checkpoint's.
        device: e.g. "cuda:1"; by default the GPU if there is one.
        description: further entries of results.json: ``model``, ``dataset``, ``seed``, ``command``, ...
        test_prior: also report the accuracy under other test distributions, see `prior_accuracies`.
        splits: all splits of the dataset, by name, so that the results also say what the others lack
            (`split_coverage`).
        tta: test-time ensembling, a key of `test_time.VIEWS`.
        output_dir: folder, created if needed, for `PREDICTIONS_FILE`, the predictions of all images.

    Returns:
        The content of results.json; accuracies and calibration errors are in percent.

    Raises:
        ValueError: the class names of model and data differ; or see `test_time.ViewProcessor`.
    """
    device = choose_device(device)
    config: Any = model.config
    names = class_names(config)
    label_of = data.match_labels(split.features["label"].names, names, "the dataset")
    check_same_names(names, config.class_counts, "the checkpoint", "the class counts")
    prior = ClassPrior({name: config.class_counts[name] for name in names})
    test_priors = long_tailed_priors(prior) if test_prior else {}
    shifts = np.log(list(test_priors.values())) - assumed_log_prior(config, prior) if test_prior else None  # (P, C)

    images = data.ImageDataset(split, ProcessorTransform(image_processor, tta))
    loader = data.evaluation_loader(images, batch_size, num_workers)
    predicted = predict_split(model, loader, *mean_and_std(image_processor), device, label_of, shifts)
    if output_dir is not None:
        write_predictions(output_dir, predicted, split, prior.names)
    described = describe(model, description or {})
    measured = measure(predicted, prior, getattr(config, "shot_groups", None))
    for entry in measured["hardest_images"]:
        entry["path"] = image_path(split[entry["index"]]["image"], (description or {}).get("dataset"))
    counts = dict(zip(prior.names, prior.counts.tolist(), strict=True))
    return {
        **described,
        "tta": None if tta == "none" else tta,
        "images": len(split),
        **measured,
        "coverage": split_coverage(splits or {described.get("split") or "test": split}, counts),
        **({"test_prior": prior_accuracies(predicted, test_priors)} if test_prior else {}),
        "versions": versions(),
        "hardware": hardware(device),
    }


def describe(model: PreTrainedModel, description: Mapping[str, Any]) -> dict[str, Any]:
    """The first entries of results.json: what was evaluated. ``description`` adds to it, or replaces entries.

    Local paths are reduced to their last component, since results are published.
    """
    config: Any = model.config
    described = {
        "model": None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": None,
        "adapter": None,
        "dataset": None,
        "loss": getattr(config, "loss", None),
        "tau": getattr(config, "tau", None),
        "pretrained": getattr(config, "pretrained", None),
        "adjustment": getattr(config, "adjustment", None),
        "seed": None,
        "command": command_line(),
        **description,
    }
    named = {key: described[key] for key in ("model", "dataset", "pretrained") if described[key] is not None}
    return described | {key: public_name(name) for key, name in named.items()}


def describe_unevaluated(
    model: PreTrainedModel, description: Mapping[str, Any], splits: Mapping[str, Dataset] | None = None
) -> dict[str, Any]:
    """What results.json would have without an evaluation, for the card and the report of the training.

    Args:
        model: a classifier with ``class_counts`` in its config.
        description: further entries, as for `evaluate_model`.
        splits: all splits of the dataset, by name.
    """
    config: Any = model.config
    counts = {name: config.class_counts[name] for name in class_names(config)}
    return {
        **describe(model, description),
        "class_counts": counts,
        "coverage": split_coverage(splits or {}, counts),
        "versions": versions(),
        "hardware": hardware(model.device),
    }


def measure(
    predicted: Mapping[str, np.ndarray], prior: ClassPrior, groups: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All metrics of results.json, from the predictions of a split.

    Args:
        predicted: ``labels``, ``predictions``, ``confidences``, ``true_probabilities`` and ``in_top5``, each of shape
            (N,), as returned by `predict_split`.
        prior: of the training images.
        groups: definition of the shot groups, see `ClassPrior.groups`.

    Returns:
        Accuracies, their confidence intervals, and calibration errors in percent; ``top5`` is None if there are at
        most five classes, ``confusion`` if there are more than `MAX_CONFUSION_CLASSES`.
    """
    counts = dict(zip(prior.names, prior.counts.tolist(), strict=True))
    outcome = (predicted["labels"], predicted["predictions"])
    confidences = predicted["confidences"]
    accuracy = long_tail_accuracy(*outcome, counts, groups)
    return {
        **{name: accuracy[name] for name in ("accuracy", "many", "medium", "few")},
        **calibration_error(*outcome, confidences),
        "intervals": bootstrap_intervals(*outcome, confidences, counts, groups),
        "top5": 100.0 * float(predicted["in_top5"].mean()) if len(prior) > 5 else None,
        **{name: accuracy[name] for name in ("macro_accuracy", "worst_class", "harmonic_mean")},
        "pdc": prediction_calibration(*outcome, counts),
        "groups": accuracy["groups"],
        "group_confusion": group_confusion(*outcome, counts, groups),
        "confusion": class_confusion(*outcome, counts) if len(prior) <= MAX_CONFUSION_CLASSES else None,
        "confused_pairs": confused_pairs(*outcome, counts),
        "hardest_images": hardest_images(*outcome, confidences, predicted["true_probabilities"], counts, groups),
        "per_class": accuracy["per_class"],
        "class_counts": counts,
        "test_counts": _count(predicted["labels"], prior.names),
        "predicted_counts": _count(predicted["predictions"], prior.names),
        "reliability": reliability_bins(*outcome, confidences),
        "selective": selective_accuracy(*outcome, confidences, counts, groups),
    }


def mistaken_images(results: Mapping[str, Any], split: Dataset) -> list[np.ndarray]:
    """The images of ``results["hardest_images"]`` for the report: uint8 (H, W, 3), of different sizes."""
    stored = (split[entry["index"]]["image"] for entry in results["hardest_images"])
    return [data.decode_image(image).permute(1, 2, 0).numpy() for image in stored]


def _count(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Number of images by class name."""
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def draw_reconstructions(
    mae: str | Path, split: Dataset, class_counts: Mapping[str, int], path: str | Path, columns: int = 8
) -> str:
    """Draw a masked autoencoder's reconstructions of one image per class, of classes from head to tail.

    Args:
        class_counts: ``{name: count}`` of a classifier's classes, with which those of the split are matched by name.

    Returns:
        A caption that explains the reconstructed pixels.

    Raises:
        ValueError: ``mae`` is not a masked autoencoder, or the split has classes that the classifier does not have.
    """
    model, image_processor = load_autoencoder(mae)
    first_image = first_image_of_each_class(split, class_counts)
    names = list(first_image)
    chosen = [names[place] for place in evenly_spaced(len(names), columns)]
    pixel_values = processed_images(split, image_processor, [first_image[name] for name in chosen])
    rows = reconstruct_images(model, pixel_values, *mean_and_std(image_processor))
    plot_reconstructions(*rows, path, titles=chosen)
    caption = f"{model.config.mask_ratio:.0%} of the patches are masked; classes from the largest to the smallest."
    if model.config.norm_pix_loss:
        caption += (
            " The model predicts each patch up to its mean and standard deviation; those of the original patch are "
            "used here, so brightness and contrast of the masked patches are not predicted."
        )
    return caption
