"""`livt adjust`: post-hoc changes of a trained classifier, folded into its last linear layer, z = W f + b.

    target prior    b'_i = b_i + shift_i (`prior_shift`); uniform on a model trained with CE: post-hoc logit adjustment
    temperature     W' = W / T, b' = b / T; a shift is not divided: it is one of the calibrated model
                    (Guo et al., ICML 2017)
    tau-norm        w'_i = w_i / |w_i|^tau, no bias (Kang et al., ICLR 2020, Sec. 4.1; the official tau_norm.py)

The adjusted folder loads in plain transformers and gives the same numbers there. Its config remembers the settings
(``adjustment``), a file of its own the layer as it was, from which `undo` restores it bit by bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import data
from ..class_names import check_same_names
from ..files import check_new_folder as _new_folder
from ..files import publish_files
from ..models.loading import classifier_layer, load_classifier
from ..prior import ClassPrior
from .evaluate import counts_by_model_name
from .predictions import split_logits
from .prior_shift import assumed_log_prior, read_shares, target_prior

TEMPERATURES = (0.01, 100.0)  # where the fit looks


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
        model: folder or Hub id of an image classifier whose logits come from a linear layer with a bias.
        target: target prior: "uniform", "train" or a JSON file ``{class: share}``.
        temperature: a number, or "fit": the one that minimizes the negative log-likelihood of the adjusted model on
            ``split``. With a target prior the images of each class together weigh as much as that prior says.
        tau_norm: exponent of the weight norms, 0 to 1 in the paper; a method of its own, not to be combined with a
            target prior.
        dataset: for the fit, and for the class counts of a model that does not know them.
        data_options: further arguments of `load_long_tailed`.

    Returns:
        What the config remembers as ``adjustment``, and for a fit ``nll``: before and after it.

    Raises:
        ValueError: settings that cannot work, or a model or data that do not fit.
    """
    if target is None and temperature is None and tau_norm is None:
        raise ValueError("adjust: nothing to do; give --target_prior, --temperature or --tau_norm (or --undo)")
    if target is not None and tau_norm is not None:
        raise ValueError("tau_norm: it balances the classes in its own way; give either it or --target_prior")
    if tau_norm is not None and not math.isfinite(tau_norm):
        raise ValueError(f"tau_norm: {tau_norm}; give a finite number, 0 to 1 as a rule")
    fixed = 1.0 if temperature is None or temperature == "fit" else _positive(temperature)
    output_dir = _new_folder(output_dir)
    classifier, image_processor = load_classifier(model)
    config: Any = classifier.config
    if getattr(config, "adjustment", None):
        raise ValueError(f"model: {str(model)!r} is adjusted already; adjust the original, or --undo this one first")
    splits = None
    if dataset is not None:
        splits = dataset if isinstance(dataset, DatasetDict) else data.load_long_tailed(dataset, **data_options)
    layer_name, layer = classifier_layer(classifier, image_processor)
    original = {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}

    shift, class_weights = np.zeros(config.num_labels), None
    if target is not None:
        prior = _training_prior(config, splits, model)
        shares = target_prior(target, prior)
        shift, class_weights = np.log(shares) - assumed_log_prior(config, prior), shares
    if tau_norm is not None:
        fold_tau_norm(layer, tau_norm)
    nll = None
    if temperature == "fit":
        if splits is None:
            raise ValueError("temperature: fit needs images with labels; name the dataset with --dataset")
        if split not in splits or not len(splits[split]):
            raise ValueError(f"temperature: {dataset} has no images in a split {split!r} to fit on; give --split")
        logits, labels = split_logits(classifier, splits[split], image_processor, batch_size, num_workers, device)
        weights = None if class_weights is None else image_weights(labels, class_weights)
        fixed = fit_temperature(logits, labels, shift, weights)
        nll = [negative_log_likelihood(logits, labels, beta, shift, weights)[0] for beta in (1.0, 1.0 / fixed)]
    fold(layer, fixed, shift)
    adjustment = {
        "target_prior": target if target in ("uniform", "train", None) else read_shares(target),
        "temperature": fixed,
        "tau_norm": tau_norm,
        "layer": layer_name,
    }
    config.adjustment = adjustment
    _save(classifier, image_processor, output_dir, original)
    return adjustment if nll is None else {**adjustment, "nll": nll}


def undo(model: str | Path, output_dir: str | Path) -> dict[str, Any]:
    """Write a copy of an adjusted classifier with its original weights, bit by bit; what the adjustment was.

    Raises:
        ValueError: the model is not adjusted, or not from a folder that holds its original layer.
    """
    output_dir = _new_folder(output_dir)
    classifier, image_processor = load_classifier(model)
    config: Any = classifier.config
    adjustment = getattr(config, "adjustment", None)
    if not adjustment:
        raise ValueError(f"model: {str(model)!r} is not adjusted; there is nothing to undo")
    try:
        original = load_file(Path(model) / ORIGINAL_LAYER)
    except (OSError, SafetensorError):
        raise ValueError(
            f"model: {str(model)!r} has no {ORIGINAL_LAYER} that can be read, which holds the original weights; give "
            "the folder that `livt adjust` wrote"
        ) from None
    layer: Any = classifier.get_submodule(adjustment["layer"])
    with torch.no_grad():
        layer.weight.copy_(original["weight"])
        layer.bias.copy_(original["bias"])
    del config.adjustment
    _save(classifier, image_processor, output_dir, None)
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
    """Rows of the weight over their norm ** tau; the bias is dropped, as the official code does."""
    weight = layer.weight.double()  # (C, D)
    norms = weight.norm(dim=1, keepdim=True)
    if not (norms > 0).all():
        raise ValueError("tau_norm: a class has the weight 0 in the classifier, which has no norm to divide by")
    layer.weight.copy_(weight / norms**tau)
    layer.bias.zero_()


# ---- Input and output


def _training_prior(config: Any, splits: DatasetDict | None, model: str | Path) -> ClassPrior:
    """Class counts of the config, or of the train split, which the config then remembers."""
    names = [config.id2label[label] for label in range(config.num_labels)]
    if getattr(config, "class_counts", None) is None:
        if splits is None or "train" not in splits:
            raise ValueError(
                f"target_prior: {str(model)!r} holds no class counts; name the dataset that it was trained on with "
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


def fit_temperature(logits: Tensor, labels: Tensor, shift: np.ndarray, weights: Tensor | None = None) -> float:
    """The T that minimizes the negative log-likelihood of ``softmax(logits / T + shift)``.

    It is convex in 1 / T: bisection of its slope, to a relative precision of 1e-6.

    Args:
        logits: float (N, C).
        labels: int64 (N,).
        shift: (C,).
        weights: (N,), of the images; None counts each the same.

    Raises:
        ValueError: there is no minimum within `TEMPERATURES`, such as where all predictions are right.
    """
    low, high = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    slopes = [negative_log_likelihood(logits, labels, beta, shift, weights)[1] for beta in (low, high)]
    if not slopes[0] < 0 < slopes[1]:
        bound = TEMPERATURES[0 if slopes[1] <= 0 else 1]
        raise ValueError(
            f"temperature: the likelihood of {len(labels)} images still grows at {bound:g}: all predictions are right, "
            "or no better than chance; give a number, or more images"
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
    """Mean of ``-log softmax(beta * logits + shift)[label]``, and its slope in beta; a chunk of images at a time."""
    total, slope = 0.0, 0.0
    weights = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    for z, y, w in zip(logits.split(1024), labels.split(1024), weights.split(1024), strict=True):
        z = z.double()
        log_p = (beta * z + torch.from_numpy(shift)).log_softmax(dim=1)  # (chunk, C)
        total -= float((w * log_p.gather(1, y[:, None])[:, 0]).sum())
        slope += float((w * ((log_p.exp() * z).sum(dim=1) - z.gather(1, y[:, None])[:, 0])).sum())
    return total / float(weights.sum()), slope / float(weights.sum())


def image_weights(labels: Tensor, shares: np.ndarray) -> Tensor:
    """Weights (N,) with which the classes have the given shares (C,), those without an image left out."""
    counts = torch.bincount(labels, minlength=len(shares))
    return torch.from_numpy(shares)[labels] / counts[labels]
