"""`livt finetune --stage probe`: a linear probe of frozen features, and the accuracy of k-NN on them, in one process.

The features are computed once (`evaluation.features`), so that further losses and seeds take seconds. The result is a
classifier like any other: the encoder as it was, and the probe as its linear layer.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from ..config.arguments import FinetuneArguments
from ..data.long_tail import dataset_labels
from ..data.transforms import image_processor
from ..evaluation.features import split_features
from ..evaluation.knn import NEIGHBORS, TEMPERATURE, knn_predictions
from ..evaluation.probe import choose_l2, fit_probe
from ..evaluation.splits import has_evaluation_split, log_coverage, split_coverage, split_to_evaluate
from ..files import read_json
from ..losses import loss_words
from ..metrics import long_tail_accuracy
from ..models.configuration_livt import ordered_class_counts
from ..models.features import set_classifier
from ..models.loading import classifier_layers
from ..prior import ClassPrior
from ..reporting.blocks import accuracy_words, counted
from .classifier import build_classifier, pixel_statistics
from .data import load_images
from .finetuning import write_results
from .frozen import frozen_precision, local_device
from .stage_run import StageRun
from .stopping import StopSignal

logger = logging.getLogger(__name__)
STEPS = 0  # of an optimizer over batches, as the record of a run has them: there are none


def probe(args: FinetuneArguments, run: StageRun) -> dict[str, Any] | None:
    """Fit the probe, evaluate it, and save it as a classifier with its card and report.

    The main process does everything; others leave at once.

    Returns:
        Results on the test split, or on the validation split if there is no test split; None without either, and in
        processes that leave.
    """
    if not run.is_main:
        return None
    images = load_images(args, args.seed, run.world, evaluation=True)
    splits, counts = images.splits, images.class_counts
    ClassPrior(counts).groups(**args.shot_groups())  # fail fast on an invalid group definition
    model = build_classifier(args, counts, args.shot_groups())
    config: Any = model.config
    mean, std = pixel_statistics(args.pretrained, args.mean, args.std)
    processor = image_processor(config.image_size, args.crop_ratio, mean, std)
    run.results = ("results.json", "README.md") if has_evaluation_split(splits) else ("README.md",)
    trained: PreTrainedModel | None = None
    if not run.is_trained(STEPS):
        run.find_checkpoint(STEPS)  # refuses to replace another model
        log_coverage(split_coverage(splits, counts))
        run.begin(STEPS)
        run.record, run.processor = run.options.record(STEPS), processor
        run.record.update(_fit(args, run, model, splits, processor))
        trained = model
        run.save(model)
    with StopSignal(run.saved, at_once=True):
        write_results(args, run, splits, trained, processor)
    run.publish()
    return read_json(run.folder, "results.json") if "results.json" in run.results else None


def _fit(
    args: FinetuneArguments, run: StageRun, model: PreTrainedModel, splits: DatasetDict, processor: Any
) -> dict[str, Any]:
    """Fit the classifier of a model; return what run.json and results.json say of it."""
    config: Any = model.config
    parameters = sum(
        parameter.numel() for layer in classifier_layers(model).values() for parameter in layer.parameters()
    )
    trained_with = loss_words(config.loss, config.tau)
    logger.info(
        f"probing {counted(len(splits['train']), 'image')} of {config.num_labels} classes at {config.image_size} px "
        f"with {trained_with}: {parameters:,} of {model.num_parameters():,} parameters are fitted"
    )
    features = {name: _features(args, run, model, split, processor, name) for name, split in splits.items()}
    labels = {name: dataset_labels(split) for name, split in splits.items()}
    readable = np.isfinite(features["train"][:, 0])
    if not readable.all():
        left_out = counted(int((~readable).sum()), "training image")
        logger.warning(f"{left_out} cannot be read and left out; see {run.folder / 'bad_images.log'}")
    train = features["train"][readable], labels["train"][readable]
    started, counts = time.perf_counter(), ordered_class_counts(config)
    options: dict[str, Any] = {
        "loss": config.loss,
        "tau": config.tau,
        "label_smoothing": config.label_smoothing,
        "device": local_device(),
    }
    if config.class_weights is not None:
        options["class_weights"] = [config.class_weights[name] for name in counts]
    validation = (features["validation"], labels["validation"]) if "validation" in splits else None
    losses = choose_l2(*train, counts, validation=validation, seed=args.seed, **options)
    for strength, loss in losses.items():
        run.log({"step": STEPS, "l2": strength, "held_out_loss": loss})
    l2 = min(losses, key=losses.__getitem__)
    set_classifier(model, fit_probe(*train, counts, l2=l2, **options).to(model.device))
    chosen_on = "the validation split" if validation else "a part of the training images"
    logger.info(f"fitted in {time.perf_counter() - started:.1f} s; L2 strength {l2:g}, chosen on {chosen_on}")
    found: dict[str, Any] = {"trained_parameters": parameters, "probe": {"l2": l2, "chosen_on": chosen_on}}
    if has_evaluation_split(splits):
        name = split_to_evaluate(splits, args.dataset)
        accuracy = knn_accuracies(*train, features[name], labels[name], counts, args.shot_groups())
        logger.info(f"k-NN (k = {NEIGHBORS}) on the same features, {name} split: {accuracy_words(accuracy)}")
        found["knn"] = {**accuracy, "neighbors": NEIGHBORS, "temperature": TEMPERATURE}
    return found


def _features(
    args: FinetuneArguments, run: StageRun, model: PreTrainedModel, split: Dataset, processor: Any, name: str
) -> np.ndarray:
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    with frozen_precision(args.mixed_precision):
        return split_features(
            model,
            split,
            processor,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            device=local_device(),
            max_bad_images=args.max_bad_images if name == "train" else None,
            bad_images_log=run.folder / "bad_images.log",
        )


def knn_accuracies(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    class_counts: dict[str, int],
    groups: dict[str, Any],
) -> dict[str, float | None]:
    """Accuracy of weighted k-NN (`knn_predictions`) in percent: ``accuracy``, ``many``, ``medium``, ``few``.

    Args:
        bank, queries: features (N, D) and (Q, D).
        bank_labels, labels: their classes, int64.
        groups: definition of the shot groups, see `ClassPrior.groups`.
    """
    device = local_device()
    votes, classes, asked = (torch.from_numpy(values).to(device) for values in (bank, bank_labels, queries))
    predictions = knn_predictions(votes, classes, asked, len(class_counts)).cpu().numpy()
    accuracy = long_tail_accuracy(labels, predictions, class_counts, groups)
    return {name: accuracy[name] for name in ("accuracy", "many", "medium", "few")}
