"""Evaluation: a checkpoint and a data set -> predictions -> the dict that results.json holds.

Probabilities are a softmax of the unadjusted logits, also for models trained with a binary cross-entropy, as in LiVT's
official evaluation. Models are loaded natively, and images go through the checkpoint's own image processor: what is
measured here is what `pipeline("image-classification", DIR)` gives. Only a few numbers are kept of each image, so
memory does not grow with the product of images and classes.

Legend: B batch, C classes, H, W image size, G patches a side, T = G * G patches.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from .. import __version__, data
from ..class_names import check_same_names, class_names
from ..files import check_folder
from ..metrics import (
    calibration_error,
    confused_pairs,
    group_confusion,
    hardest_images,
    long_tail_accuracy,
    prediction_calibration,
    reliability_bins,
)
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from ..prior import ClassPrior
from ..reporting.charts import plot_reconstructions
from ..reporting.evaluation_report import write_report
from .prior_shift import assumed_log_prior, long_tailed_priors, prior_accuracies

Statistics = Sequence[float]  # of the pixels in 0 .. 1, per channel
MASK_GREY = 225  # grey level of hidden patches in pictures


def evaluate_checkpoint(
    model: str | Path,
    dataset: str | Path | DatasetDict,
    *,
    output_dir: str | Path,
    split: str = "test",
    mae: str | Path | None = None,
    test_prior: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    **data_options: Any,
) -> dict[str, Any]:
    """Evaluate a saved classifier on one split of a data set and write the report: `livt evaluate`.

    Args:
        model: folder or Hub id of an image classifier; one of ours knows its class counts and shot groups, for any
            other one the counts of the data set's train split are used.
        dataset: anything that `livt_hf.data.load_long_tailed` takes, or what it returned.
        output_dir: where results.json, report.md, report.html and the pictures go.
        split: split to evaluate on.
        mae: folder or Hub id of a masked autoencoder whose reconstructions are shown in the report.
        test_prior: also the accuracies under forward and backward long-tailed test distributions.
        data_options: further arguments of `load_long_tailed`, such as ``data_dir`` or ``imbalance_factor``.

    Returns:
        What results.json holds.

    Raises:
        ValueError: no such model, data set or split, or class names that differ.
    """
    for option, value, smallest in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < smallest:
            raise ValueError(f"{option}: {value}; at least {smallest} is needed")
    check_folder(output_dir)
    device = choose_device(device)
    classifier, image_processor = load_classifier(model)
    if isinstance(dataset, DatasetDict):
        name, splits = "a DatasetDict", dataset
    else:
        name, splits = str(dataset), data.load_long_tailed(dataset, **data_options)
    if split not in splits:
        raise ValueError(f"split: {name} has no split {split!r}; choose one of {', '.join(splits)}")
    counts_from = None
    if getattr(classifier.config, "class_counts", None) is None:
        if "train" not in splits:
            raise ValueError(f"model: {str(model)!r} holds no class counts, and {name} has no train split to count")
        classifier.config.class_counts = counts_by_model_name(splits["train"], classifier.config)
        counts_from = f"train split of {name}"
        print(f"{model} holds no class counts: the shot groups follow the {counts_from}")
    results = evaluate_model(
        classifier,
        splits[split],
        image_processor,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        description={"model": str(model), "dataset": name, "split": split, "class_counts_from": counts_from},
        test_prior=test_prior,
    )
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if mae is not None:
        picture = output_dir / "reconstructions.png"
        results["reconstructions"] = draw_reconstructions(mae, splits[split], results["class_counts"], picture)
    write_report(results, output_dir, splits[split])
    return results


def counts_by_model_name(train: Dataset, config: Any) -> dict[str, int]:
    """Images of each class of a model in a train split, whose names may be others that `match_labels` takes for them.

    Raises:
        ValueError: the split has other classes than the model.
    """
    names = class_names(config)
    counts = data.class_counts(train)
    label_of = data.match_labels(list(counts), names, "the data set")
    found = {names[label]: count for label, count in zip(label_of, counts.values(), strict=True)}
    check_same_names(names, found, "the checkpoint", "the train split")
    return {name: found[name] for name in names}


def choose_device(device: str | None) -> str:
    """``device``, or by default the GPU if there is one. Raises ValueError where there is no such device."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: {device!r} is unknown; use cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device!r} is not there; this machine has {torch.cuda.device_count()} usable GPUs")
    return device


def load_classifier(model: str | Path) -> tuple[PreTrainedModel, Any]:
    """An image classifier and its image processor, loaded natively from a folder or the Hub.

    Raises:
        ValueError: there is no such folder or model, or it is no image classifier.
    """
    return _load("model", model, AutoModelForImageClassification, "an image classifier")


def load_autoencoder(mae: str | Path) -> tuple[LivtMAEForPreTraining, Any]:
    """A masked autoencoder and its image processor; ValueError as in `load_classifier`."""
    return _load("mae", mae, LivtMAEForPreTraining, "a masked autoencoder")


def _load(option: str, model: str | Path, model_class: Any, kind: str) -> tuple[Any, Any]:
    """Model and image processor. transformers fills missing weights with random ones; here that is an error."""
    _check_model_folder(option, model)
    start = f"{option}: {str(model)!r} cannot be loaded as {kind}"
    try:
        is_autoencoder = AutoConfig.from_pretrained(model).model_type == "vit_mae"
        if is_autoencoder and model_class is AutoModelForImageClassification:
            raise ValueError("it is a masked autoencoder; fine-tune it first, livt finetune --pretrained")
        if not is_autoencoder and model_class is LivtMAEForPreTraining:
            raise ValueError("it is another model; name the output folder of livt pretrain")
        loaded, info = model_class.from_pretrained(model, output_loading_info=True)
        image_processor = AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{start}: {str(error).strip().splitlines()[0]}") from None
    if info["missing_keys"]:
        raise ValueError(f"{start}: it lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    return loaded, image_processor


def _check_model_folder(option: str, model: str | Path) -> None:
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{option}: {str(model)!r} holds no config.json; give the folder that holds the trained model")
    is_hub_id = isinstance(model, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model)
    if not is_hub_id and not folder.is_dir():
        raise ValueError(f"{option}: there is no folder {str(model)!r}")


class ProcessorTransform:
    """Resize and crop of a saved image processor: uint8 (3, h, w) -> ``pixel_values`` uint8 (3, H, W), not normalised.

    Hence evaluation, `livt predict` and a pipeline see the same pixels, whichever processor a checkpoint has.

    Raises:
        ValueError: a processor that always normalises, as that of timm's own checkpoints.
    """

    def __init__(self, image_processor: Any):
        if not hasattr(image_processor, "do_normalize"):
            raise ValueError(
                f"model: its {type(image_processor).__name__} cannot leave out the normalisation; evaluate what `livt "
                "finetune --pretrained` makes of this model, which has another processor"
            )
        self.image_processor = image_processor

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        batch = self.image_processor(
            image,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
            input_data_format="channels_first",
        )
        return {"pixel_values": batch["pixel_values"][0]}


def mean_and_std(image_processor: Any) -> tuple[Statistics, Statistics]:
    """The statistics that the processor normalises pixels in 0 .. 1 with."""
    if not image_processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(image_processor.image_mean), tuple(image_processor.image_std)


@torch.no_grad()  # not inference_mode: a model that goes on training would keep inference tensors
def predict_split(
    model: PreTrainedModel,
    loader: Iterable[Mapping[str, Tensor]],
    mean: Statistics,
    std: Statistics,
    device: str | torch.device = "cpu",
    label_of: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Run the model over a split and keep a few numbers of each image.

    Args:
        model: image classifier; is put on ``device`` and into evaluation mode.
        loader: yields ``pixel_values``, uint8 (B, 3, H, W), and ``labels``, int64 (B,).
        mean, std: of the pixels in 0 .. 1, per channel.
        label_of: int64 (classes of the data,), the model's label of each of the data's; by default they are the same.
        shifts: float (P, C), added to the logits for further predictions.

    Returns:
        The model's ``labels`` and ``predictions``, int64 (N,); ``confidences`` and ``true_probabilities``, float64
        (N,): the softmax probabilities of the prediction and of the true class; ``in_top5``, bool (N,): whether the
        true class is among the five most probable ones. With ``shifts`` also ``shifted_predictions``, int64 (N, P).

    Raises:
        ValueError: a logit is not finite.
    """
    model.to(device).eval()  # type: ignore[arg-type]
    mapping = None if label_of is None else torch.from_numpy(label_of)
    # Python numbers, not arrays: these would lie between the freed logits of each batch, so that the allocator could
    # not use their space again and memory grew as if all logits were kept.
    parts: dict[str, list[Any]] = {}
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=None):
        pixel_values = data.normalize(batch["pixel_values"].to(device, non_blocking=True), mean, std)
        logits = model(pixel_values.to(model.dtype)).logits.float()  # (B, C)
        if not torch.isfinite(logits).all():
            raise ValueError("model: its logits are not finite; the checkpoint is damaged, or its training diverged")
        labels = (batch["labels"] if mapping is None else mapping[batch["labels"]]).to(device)  # (B,)
        probabilities = logits.softmax(dim=-1)
        confidences, predictions = probabilities.max(dim=-1)
        best = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        kept = {
            "labels": labels,
            "predictions": predictions,
            "confidences": confidences.double(),
            "true_probabilities": probabilities.gather(1, labels[:, None])[:, 0].double(),
            "in_top5": (best == labels[:, None]).any(dim=1),
        }
        if shifts is not None:
            moved = [(logits + torch.from_numpy(shift).to(logits)).argmax(dim=-1) for shift in shifts]
            kept["shifted_predictions"] = torch.stack(moved, dim=1)  # (B, P)
        for name, values in kept.items():
            parts.setdefault(name, []).extend(values.tolist())
    return {name: np.array(values) for name, values in parts.items()}


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
) -> dict[str, Any]:
    """Evaluate a classifier that knows its class counts on a split.

    Args:
        model: a `ViTForBalancedClassification`, or another image classifier whose config was given ``class_counts``
            (training images by class name).
        split: images and labels as `livt_hf.data` has them. Its classes are matched with the model's by name.
        image_processor: the checkpoint's.
        device: e.g. "cuda:1"; by default the GPU if there is one.
        description: what else results.json shall say: ``model``, ``dataset``, ``seed``, ``command``, ...
        test_prior: also the accuracies under other test distributions, see `prior_accuracies`.

    Returns:
        The dict of results.json: all accuracies and calibration errors in percent. ``top5`` is None where there are at
        most five classes.

    Raises:
        ValueError: the class names of model and data differ.
    """
    device = choose_device(device)
    config: Any = model.config
    names = class_names(config)
    data_names = split.features["label"].names
    label_of = data.match_labels(data_names, names, "the data set")
    check_same_names(names, config.class_counts, "the checkpoint", "the class counts")
    counts = {name: int(config.class_counts[name]) for name in names}

    images = data.ImageDataset(split, ProcessorTransform(image_processor))
    loader = data.evaluation_loader(images, batch_size, num_workers)
    priors, shifts = {}, None
    if test_prior:
        prior = ClassPrior(counts)
        priors = long_tailed_priors(prior)
        shifts = np.log(list(priors.values())) - assumed_log_prior(config, prior)  # (P, C)
    predicted = predict_split(model, loader, *mean_and_std(image_processor), device, label_of, shifts)
    outcome = (predicted["labels"], predicted["predictions"])
    groups = getattr(config, "shot_groups", None)
    accuracy = long_tail_accuracy(*outcome, counts, groups)
    return {
        "model": None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dataset": None,
        "loss": getattr(config, "loss", None),
        "tau": getattr(config, "tau", None),
        "pretrained": getattr(config, "pretrained", None),
        "adjustment": getattr(config, "adjustment", None),
        "seed": None,
        "command": command_line(),
        **(description or {}),
        "images": len(split),
        **{measure: accuracy[measure] for measure in ("accuracy", "many", "medium", "few")},
        **calibration_error(*outcome, predicted["confidences"]),
        "top5": 100.0 * float(predicted["in_top5"].mean()) if len(names) > 5 else None,
        **{measure: accuracy[measure] for measure in ("macro_accuracy", "worst_class", "harmonic_mean")},
        "pdc": prediction_calibration(*outcome, counts),
        "groups": accuracy["groups"],
        "group_confusion": group_confusion(*outcome, counts, groups),
        "confused_pairs": confused_pairs(*outcome, counts),
        "hardest_images": hardest_images(
            *outcome, predicted["confidences"], predicted["true_probabilities"], counts, groups
        ),
        "per_class": accuracy["per_class"],
        "class_counts": counts,
        "test_counts": _count(predicted["labels"], names),
        "predicted_counts": _count(predicted["predictions"], names),
        "reliability": reliability_bins(*outcome, predicted["confidences"]),
        **({"test_prior": prior_accuracies(predicted, priors)} if test_prior else {}),
        "versions": versions(),
        "hardware": hardware(device),
    }


def _count(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How often each class occurs: ``{name: images}``."""
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def command_line() -> str:
    """The command that runs, without the folders of this machine that lead to it."""
    program = Path(sys.argv[0]).name
    program = "livt" if program in ("livt", "cli.py") else f"python {program}" if program.endswith(".py") else program
    return " ".join([program, shlex.join(sys.argv[1:])]).strip()


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that numbers depend on."""
    libraries = ("torch", "torchvision", "transformers", "datasets", "pillow", "numpy")
    return {
        "livt_hf": __version__,
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in libraries},
    }


def hardware(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The machine: CPU name and usable cores, and the GPU's name if it is used."""
    device = torch.device(device)
    cpu_info = Path("/proc/cpuinfo")
    model_names = re.findall(r"model name\s*: (.+)", cpu_info.read_text()) if cpu_info.is_file() else []
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": model_names[0].strip() if model_names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def draw_reconstructions(
    mae: str | Path, split: Dataset, class_counts: Mapping[str, int], path: str | Path, columns: int = 8
) -> str:
    """Draw what a saved masked autoencoder makes of one image each of classes from head to tail.

    Args:
        class_counts: ``{name: count}`` of a classifier's classes, with which those of the split are matched by name.

    Returns:
        A caption that says how the pixels of the masked patches were made.

    Raises:
        ValueError: ``mae`` is no masked autoencoder, or the split has classes that the classifier does not have.
    """
    model, image_processor = load_autoencoder(mae)
    names = list(class_counts)
    label_of = data.match_labels(split.features["label"].names, names, "the data set")
    first_image: dict[str, int] = {}
    for index, label in enumerate(split["label"]):
        first_image.setdefault(names[label_of[label]], index)
    by_size = sorted(first_image, key=lambda name: -class_counts[name])
    chosen = [by_size[place] for place in np.unique(np.linspace(0, len(by_size) - 1, columns).round().astype(int))]
    images = data.ImageDataset(split, ProcessorTransform(image_processor))
    pixel_values = torch.stack([torch.as_tensor(images[first_image[name]]["pixel_values"]) for name in chosen])
    rows = reconstruct_images(model, pixel_values, *mean_and_std(image_processor))
    plot_reconstructions(*rows, path, titles=chosen)
    caption = f"{model.config.mask_ratio:.0%} of the patches are hidden; classes from the largest to the smallest."
    if model.config.norm_pix_loss:
        caption += (
            " The model predicts each patch up to its mean and standard deviation; those of the true patch are put "
            "back, so brightness and contrast of the hidden patches are borrowed from the original."
        )
    return caption


@torch.no_grad()
def reconstruct_images(
    mae: LivtMAEForPreTraining, images: Tensor, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original, masked and reconstructed images, uint8 (B, H, W, 3) each; the mask follows from the seed.

    Args:
        images: uint8 (B, 3, H, W), of the size that the model takes.
        mean, std: of the pixels in 0 .. 1, as the model was trained.
    """
    mae = mae.eval()
    patch_size = mae.config.patch_size
    grid = mae.config.image_size // patch_size
    noise = torch.rand(len(images), grid * grid, generator=torch.Generator().manual_seed(seed))  # (B, T)
    device = mae.device
    reconstruction, mask = mae.reconstruct(data.normalize(images.to(device), mean, std), noise=noise.to(device))
    hidden = mask.cpu().reshape(-1, 1, grid, grid).bool()  # (B, 1, G, G)
    hidden = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)  # (B, 1, H, W)
    channels = (1, 3, 1, 1)
    pixels = reconstruction.float().cpu() * torch.tensor(std).view(channels) + torch.tensor(mean).view(channels)
    pixels = pixels.mul(255).round().clamp(0, 255).to(torch.uint8)
    originals, masked, reconstructed = (
        batch.permute(0, 2, 3, 1).numpy() for batch in (images, images.masked_fill(hidden, MASK_GREY), pixels)
    )
    return originals, masked, reconstructed
