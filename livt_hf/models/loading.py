"""Loading checkpoints: a folder or Hub id -> model and image processor, or one line that names the reason.

transformers fills missing weights with random ones; here they are an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTMAEPreTrainedModel,
)
from transformers.utils import logging

from ..class_names import abbreviate
from ..config.hub_ids import similar_name, why_unavailable

# Kind of checkpoint -> where to find one
_ADVICE = {
    "a model": "give the output folder of `livt pretrain` or `livt finetune`, or a Hub id",
    "an image classifier": "give the output folder of `livt finetune`, or the Hub id of an image classifier",
    "a masked autoencoder": "give the output folder of `livt pretrain`, or a Hub id such as facebook/vit-mae-base",
}
_PARTIAL = " (a checkpoint of light fine-tuning holds only what is trained; its run's command, repeated, finishes it)"


def load_config(checkpoint: str | Path, option: str = "pretrained") -> PreTrainedConfig:
    """Load the config of a model.

    Args:
        checkpoint: folder or Hub id.
        option: option or argument that names the checkpoint, for the error message.

    Raises:
        ValueError: there is no such model.
    """
    with _errors_in_one_line(option, checkpoint, "a model"):
        return AutoConfig.from_pretrained(checkpoint)


def load_model(
    model_class: Any,
    checkpoint: str | Path,
    option: str,
    *,
    config: PreTrainedConfig | None = None,
    optional: Callable[[Any], Collection[str]] | None = None,
    quiet: bool = False,
    **options: Any,
) -> tuple[Any, list[str]]:
    """Load a model and check that the checkpoint has all its weights.

    Args:
        model_class: a class of models, `AutoModelForImageClassification` or `AutoModel`.
        checkpoint: folder or Hub id.
        option: option or argument that names the checkpoint, for the error message.
        config: used in place of the saved one.
        optional: returns the names of the model's weights that the checkpoint may lack.
        quiet: silence transformers' warnings about weights that are missing or not used.
        options: further arguments of `from_pretrained`.

    Returns:
        The model and the sorted names of the optional weights that were missing and are newly initialized.

    Raises:
        ValueError: there is no such checkpoint, it is of another kind, damaged or incomplete.
    """
    is_autoencoder = isinstance(model_class, type) and issubclass(model_class, ViTMAEPreTrainedModel)
    kind = (
        "a masked autoencoder" if is_autoencoder else "a model" if model_class is AutoModel else "an image classifier"
    )
    with _errors_in_one_line(option, checkpoint, kind):
        model_config = AutoConfig.from_pretrained(checkpoint) if config is None else config
        if not _fits(model_class, model_config):
            raise ValueError(f"it is a {model_config.model_type!r} model")
        with _quiet_transformers() if quiet else contextlib.nullcontext():
            model, info = model_class.from_pretrained(checkpoint, config=config, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        required = sorted(set(missing).difference(optional(model) if optional else ()))
        if required:
            raise ValueError(f"it lacks the weights {abbreviate(required, 3)}")
    return model, missing


def load_classifier(model: str | Path) -> tuple[PreTrainedModel, Any]:
    """Load an image classifier and its image processor natively; ValueError as in `load_model`."""
    return _load_with_processor(AutoModelForImageClassification, model, "model", "an image classifier")


def load_autoencoder(mae: str | Path) -> tuple[Any, Any]:
    """Load a `LivtMAEForPreTraining` and its image processor; ValueError as in `load_model`."""
    from .modeling_livt_mae import LivtMAEForPreTraining  # imports the data package, which a classifier can do without

    return _load_with_processor(LivtMAEForPreTraining, mae, "mae", "a masked autoencoder")


def _load_with_processor(model_class: Any, checkpoint: str | Path, option: str, kind: str) -> tuple[Any, Any]:
    model, _ = load_model(model_class, checkpoint, option, quiet=True)  # missing weights are a one-line error
    return model, load_image_processor(checkpoint, option, kind)


def load_image_processor(checkpoint: str | Path, option: str = "model", kind: str = "a model") -> Any:
    """Load an image processor; ValueError in which the checkpoint is ``kind``, a key of ``_ADVICE``."""
    with _errors_in_one_line(option, checkpoint, kind):
        try:
            return AutoImageProcessor.from_pretrained(checkpoint)
        except OSError:
            if not Path(checkpoint).is_dir():
                raise
            raise ValueError("it has no image processor (preprocessor_config.json)") from None


def _fits(model_class: Any, config: PreTrainedConfig) -> bool:
    if model_class is AutoModelForImageClassification:
        return type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if model_class is AutoModel:
        return True
    return config.model_type == model_class.config_class.model_type


@contextlib.contextmanager
def _errors_in_one_line(option: str, checkpoint: str | Path, kind: str) -> Iterator[None]:
    """Turn an error of transformers, the Hub's client, torch or safetensors into a ValueError of one line."""
    try:
        _check_exists(checkpoint)
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        near = "" if Path(checkpoint).exists() else similar_name(str(checkpoint), "model")
        # of safetensors: a truncated file, most often
        advice = "copy or download it again" if isinstance(error, SafetensorError) else _ADVICE[kind]
        raise ValueError(
            f"{option}: {str(checkpoint)!r} cannot be loaded as {kind}: {reason};{near} {advice}"
        ) from None


def _check_exists(checkpoint: str | Path) -> None:
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / "config.json").is_file():
        partial = (folder / "trained.safetensors").is_file()
        raise ValueError(f"the folder has no config.json{_PARTIAL if partial else ''}")
    is_hub_id = isinstance(checkpoint, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", checkpoint)
    if not is_hub_id and not folder.is_dir():
        raise ValueError("it is a file" if folder.exists() else "there is no such folder")
    if not folder.is_dir() and (reason := why_unavailable(str(checkpoint), "model")):
        raise ValueError("it is a file" if folder.exists() else reason)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def classifier_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Find the linear layers that compute the logits, by name: one, or several whose outputs are averaged (DeiT).

    Raises:
        ValueError: there is none.
    """
    base = model.base_model_prefix
    if hasattr(model, "timm_model"):
        timm_model: Any = model.timm_model
        heads = timm_model.get_classifier()
        heads = heads if isinstance(heads, tuple | list) else (heads,)
        candidates = [(name, module) for name, module in model.named_modules() if any(module is head for head in heads)]
    else:
        # CLIP and SigLIP name their tower otherwise than their base model
        backbone = (f"{base}.", "vision_model.")
        candidates = [(name, module) for name, module in model.named_modules() if not f"{name}.".startswith(backbone)]
    layers = {
        name: module
        for name, module in candidates
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no linear classifier for {model.config.num_labels} classes"
        )
    return layers


@torch.no_grad()
def classifier_layer(model: PreTrainedModel, image_processor: Any) -> tuple[str, nn.Linear]:
    """Name and module of the one of `classifier_layers` whose output is the logits, as a forward pass shows.

    Raises:
        ValueError: there is none (DeiT averages two), or it has no bias.
    """
    layers, outputs = classifier_layers(model), dict[str, Tensor]()
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name, module in layers.items()
    ]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixel_values = image_processor(PIL.Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    model.eval()
    try:
        logits = model(pixel_values.to(model.device, model.dtype)).logits
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in outputs.items():
        if output.shape == logits.shape and torch.equal(output, logits):
            if layers[name].bias is None:
                raise ValueError(f"model: its linear classifier {name!r} has no bias, so nothing can be folded into it")
            return name, layers[name]
    raise ValueError(f"model: the logits of this {type(model).__name__} are not the output of one linear layer")


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; ValueError if the architecture cannot."""
    # Releases of transformers before `activation_checkpointing_enable` have only the other name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable()
    except ValueError:
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} does not support it; leave the option out"
        ) from None
