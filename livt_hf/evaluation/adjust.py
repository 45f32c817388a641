"""`livt adjust`: post-hoc changes of a trained classifier, folded into its last linear layer, z = W f + b.

    target prior    b'_i = b_i + shift_i (`prior_shift`); uniform on a model trained with CE: post-hoc logit adjustment
    temperature     W' = W / T, b' = b / T; the shift is added after the division: it is one of the calibrated model
                    (Guo et al., ICML 2017)
    tau-norm        w'_i = w_i / |w_i|^tau, no bias (Kang et al., ICLR 2020, Sec. 4.1; the official tau_norm.py)

The adjusted folder loads in plain transformers and gives the same numbers there. Its config records the settings
(``adjustment``), and a separate file keeps the original layer, from which `undo` restores it bit for bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..class_names import check_same_names, class_names
from ..files import check_new_folder, publish_files, read_run
from ..models.loading import classifier_layer, load_classifier
from ..prior import ClassPrior
from ..reporting.blocks import counted
from ..reporting.card import write_model_card
from .evaluate import counts_by_model_name, describe_unevaluated
from .predictions import split_logits
from .prior_shift import assumed_log_prior, read_prior, target_prior
from .splits import held_out_as_trained, open_dataset

TEMPERATURES = (0.01, 100.0)  # range of the fit
ORIGINAL_LAYER = "classifier_before_adjustment.safetensors"


def adjust(
    model: str | Path,
    output_dir: str | Path,
    *,
    target: str | None = None,
    temperature: str | float | None = None,
    tau_norm: float | None = None,
    dataset: str | Path | DatasetDict | None = None,
    split: str = "validation",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    **data_options: Any,
) -> dict[str, Any]:
    """Write an adjusted copy of a classifier into a new folder.

    Args:
        model: folder or Hub id of an image classifier whose logits are computed by a linear layer with a bias.
        target: target prior: "uniform", "train" or a JSON file ``{class: probability or count}``.
        temperature: a number, or "fit": the temperature that minimizes the negative log-likelihood of the adjusted
            model on ``split``; with a target prior, images are weighted so that their classes follow it.
        tau_norm: exponent of the weight norms, 0 to 1 in the paper; cannot be combined with a target prior.
        dataset: for the fit, and for the class counts of a model whose config has none.
        data_options: further arguments of `load_long_tailed`.

    Returns:
        The ``adjustment`` recorded in the config; with a fit also ``nll``, the likelihood before and after it.

    Raises:
        ValueError: invalid settings, or a model or dataset that does not fit them.
    """
    divisor = _check_settings(target, temperature, tau_norm)
    output_dir = check_new_folder(output_dir)
    classifier, image_processor = load_classifier(model)
    config: Any = classifier.config
    if getattr(config, "adjustment", None):
        raise ValueError(f"model: {str(model)!r} is adjusted already; adjust the original, or --undo this one first")
    data_options = held_out_as_trained(model, dataset, data_options)
    splits = None if dataset is None else open_dataset(dataset, **data_options)[0]
    layer_name, layer = classifier_layer(classifier, image_processor)
    original = {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}

    shift, target_pi = np.zeros(config.num_labels), None
    if target is not None:
        shift, target_pi = _shift_to(target, config, _training_prior(config, splits, model))
    if tau_norm is not None:
        fold_tau_norm(layer, tau_norm)
    nll = None
    if divisor is None:
        images = _images_to_fit_on(splits, split, dataset)
        logits, labels = split_logits(classifier, images, image_processor, batch_size, num_workers, device)
        divisor, nll = _fit(logits, labels, shift, target_pi)
    fold(layer, divisor, shift)
    config.adjustment = {
        "target_prior": target if target in ("uniform", "train", None) else read_prior(target),
        "temperature": divisor,
        "tau_norm": tau_norm,
        "layer": layer_name,
    }
    _save(classifier, image_processor, output_dir, original)
    _write_card(classifier, model, output_dir)
    return config.adjustment if nll is None else {**config.adjustment, "nll": nll}


def _check_settings(target: str | None, temperature: str | float | None, tau_norm: float | None) -> float | None:
    """Number to divide the logits by, 1 by default; None if it is to be fitted. ValueError for invalid settings."""
    if target is None and temperature is None and tau_norm is None:
        raise ValueError("adjust: nothing to do; give --target_prior, --temperature or --tau_norm (or --undo)")
    if target is not None and tau_norm is not None:
        raise ValueError("tau_norm: cannot be combined with --target_prior, since both balance the classes; give one")
    if tau_norm is not None and not math.isfinite(tau_norm):
        raise ValueError(f"tau_norm: {tau_norm}; give a finite number, usually 0 to 1")
    if temperature == "fit":
        return None
    return 1.0 if temperature is None else _positive(temperature)


def _shift_to(target: str, config: Any, prior: ClassPrior) -> tuple[np.ndarray, np.ndarray]:
    """The logit shift to a target prior, and that prior: (C,) each."""
    target_pi = target_prior(target, prior)
    return np.log(target_pi) - assumed_log_prior(config, prior), target_pi


def _images_to_fit_on(splits: DatasetDict | None, split: str, dataset: Any) -> Dataset:
    if splits is None:
        raise ValueError("temperature: fit needs images with labels; name the dataset with --dataset")
    if split not in splits or not len(splits[split]):
        found = ", ".join(name for name, images in splits.items() if len(images))
        raise ValueError(
            f"temperature: {dataset} has no images in a split {split!r} to fit on; choose one of {found} with --split"
        )
    return splits[split]


def _fit(logits: Tensor, labels: Tensor, shift: np.ndarray, target_pi: np.ndarray | None) -> tuple[float, list[float]]:
    """The temperature, and the negative log-likelihood without and with it."""
    weights = None if target_pi is None else image_weights(labels, target_pi)
    temperature = fit_temperature(logits, labels, shift, weights)
    nll = [negative_log_likelihood(logits, labels, beta, shift, weights)[0] for beta in (1.0, 1.0 / temperature)]
    return temperature, nll


def undo(model: str | Path, output_dir: str | Path) -> dict[str, Any]:
    """Write a copy of an adjusted classifier with its original weights, bit for bit; return the former adjustment.

    Raises:
        ValueError: the model is not adjusted, or not from a folder that contains its original layer.
    """
    output_dir = check_new_folder(output_dir)
    classifier, image_processor = load_classifier(model)
    config: Any = classifier.config
    adjustment = getattr(config, "adjustment", None)
    if not adjustment:
        raise ValueError(f"model: {str(model)!r} is not adjusted; there is nothing to undo")
    try:
        original = load_file(Path(model) / ORIGINAL_LAYER)
    except (OSError, SafetensorError):
        raise ValueError(
            f"model: {str(model)!r} has no readable {ORIGINAL_LAYER}, which holds the original weights; give the "
            "folder that `livt adjust` wrote"
        ) from None
    layer: Any = classifier.get_submodule(adjustment["layer"])
    with torch.no_grad():
        layer.weight.copy_(original["weight"])
        layer.bias.copy_(original["bias"])
    del config.adjustment
    _save(classifier, image_processor, output_dir, None)
    _write_card(classifier, model, output_dir)
    return adjustment


# ---- The layer


@torch.no_grad()
def fold(layer: nn.Linear, temperature: float, shift: np.ndarray) -> None:
    """``z -> z / temperature + shift``, computed in float64; shift (C,)."""
    layer.weight.copy_(layer.weight.double() / temperature)
    shifted = layer.bias.double() / temperature + torch.from_numpy(shift).to(layer.bias.device)
    layer.bias.copy_(shifted)


@torch.no_grad()
def fold_tau_norm(layer: nn.Linear, tau: float) -> None:
    """Divide each row of the weight by its norm ** tau; the bias is dropped, as in the official code."""
    weight = layer.weight.double()  # (C, D)
    norms = weight.norm(dim=1, keepdim=True)
    if not (norms > 0).all():
        raise ValueError(
            "tau_norm: a class has a weight vector of norm 0 in the classifier, which cannot be normalized"
        )
    layer.weight.copy_(weight / norms**tau)
    layer.bias.zero_()


# ---- Input and output


def _training_prior(config: Any, splits: DatasetDict | None, model: str | Path) -> ClassPrior:
    """Class counts of the config, or of the train split, which are then stored in the config."""
    names = class_names(config)
    if getattr(config, "class_counts", None) is None:
        if splits is None or "train" not in splits:
            raise ValueError(
                f"target_prior: the config of {str(model)!r} has no class counts; name its training dataset with "
                "--dataset"
            )
        config.class_counts = counts_by_model_name(splits["train"], config)
    check_same_names(names, config.class_counts, "the checkpoint", "the class counts")
    return ClassPrior({name: config.class_counts[name] for name in names})


def _positive(temperature: str | float) -> float:
    try:
        value = float(temperature)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"temperature: {temperature!r}; give fit or a number above 0")
    return value


def _save(
    classifier: PreTrainedModel, image_processor: Any, output_dir: Path, original: dict[str, Tensor] | None
) -> None:
    with publish_files(output_dir) as folder:
        classifier.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        if original is not None:
            save_file({name: tensor.cpu().contiguous() for name, tensor in original.items()}, folder / ORIGINAL_LAYER)


def _write_card(classifier: PreTrainedModel, model: str | Path, output_dir: Path) -> None:
    """README.md, which says that the copy was not evaluated; not if the config records no training."""
    if None in (getattr(classifier.config, name, None) for name in ("class_counts", "loss")):
        return
    run = read_run(Path(model)) if Path(model).is_dir() else None
    described = {"model": output_dir.resolve().name, "dataset": run["arguments"]["dataset"] if run else None}
    write_model_card(output_dir, describe_unevaluated(classifier, described))


def fit_temperature(logits: Tensor, labels: Tensor, shift: np.ndarray, weights: Tensor | None = None) -> float:
    """The T that minimizes the negative log-likelihood of ``softmax(logits / T + shift)``.

    The likelihood is convex in 1 / T: bisection of its slope, to a relative precision of 1e-6.

    Args:
        logits: float (N, C).
        labels: int64 (N,).
        shift: (C,).
        weights: (N,), of the images; by default all are equal.

    Raises:
        ValueError: there is no minimum within `TEMPERATURES`, e.g. because all predictions are correct.
    """
    low, high = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    slopes = [negative_log_likelihood(logits, labels, beta, shift, weights)[1] for beta in (low, high)]
    if not slopes[0] < 0 < slopes[1]:
        all_correct = slopes[1] <= 0
        bound = TEMPERATURES[0 if all_correct else 1]
        cause = "all predictions are correct" if all_correct else "the predictions are no better than chance"
        raise ValueError(
            f"temperature: the likelihood of {counted(len(labels), 'image')} still grows at {bound:g}: {cause}; "
            + ("give a number, or more images" if all_correct else "train longer")
        )
    while high / low > 1.0 + 1e-6:
        middle = math.sqrt(low * high)
        if negative_log_likelihood(logits, labels, middle, shift, weights)[1] < 0:
            low = middle
        else:
            high = middle
    return 1.0 / math.sqrt(low * high)


def negative_log_likelihood(
    logits: Tensor, labels: Tensor, beta: float, shift: np.ndarray, weights: Tensor | None = None
) -> tuple[float, float]:
    """Mean of ``-log softmax(beta * logits + shift)[label]``, and its slope in beta, over chunks of images."""
    total, slope = 0.0, 0.0
    weights = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    for z, y, w in zip(logits.split(1024), labels.split(1024), weights.split(1024), strict=True):
        z = z.double()
        log_p = (beta * z + torch.from_numpy(shift)).log_softmax(dim=1)  # (chunk, C)
        total -= float((w * log_p.gather(1, y[:, None])[:, 0]).sum())
        slope += float((w * ((log_p.exp() * z).sum(dim=1) - z.gather(1, y[:, None])[:, 0])).sum())
    return total / float(weights.sum()), slope / float(weights.sum())


def image_weights(labels: Tensor, target: np.ndarray) -> Tensor:
    """Weights (N,) that give each class its probability in the prior ``target`` (C,); absent classes are left out."""
    counts = torch.bincount(labels, minlength=len(target))
    return torch.from_numpy(target)[labels] / counts[labels]
