"""Any image classifier of transformers as the start of balanced fine-tuning: ViT, DeiT, Swin, DINOv2, ConvNeXt, timm.

A checkpoint is loaded natively. Its classifier stays if its classes are those of the data, in any order; otherwise a
new one takes its place, drawn as LiVT's. Another image size interpolates absolute positions, as LiVT's 224 -> 384 does.

Legend: C classes, D width, T patch tokens.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Mapping, Sequence
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
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ..class_names import match_labels, placeholder_names, set_class_names
from ..optimization import layer_ids
from ..prior import ClassPrior
from .modeling_livt import CLASSIFIER_STD, interpolate_position_embeddings
from .modeling_livt_mae import LivtMAEForPreTraining


def load_config(pretrained: str) -> PreTrainedConfig:
    """The config of a folder or Hub id; ValueError, in one line, if there is no such model."""
    try:
        return AutoConfig.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrained: {pretrained!r} is neither a folder with a model nor one on the Hub "
            f"({str(error).strip().splitlines()[0]}); give the output folder of `livt pretrain`, an image classifier, "
            "a Hub id, or none"
        ) from None


def load_pretrained_classifier(
    pretrained: str,
    class_counts: Mapping[str, int],
    *,
    image_size: int | None = None,
    drop_path: float = 0.0,
    ignore_mismatched_classifier: bool = False,
) -> PreTrainedModel:
    """An image classifier for the classes of ``class_counts``; its config has ``image_size``, whatever its kind.

    Args:
        pretrained: folder or Hub id of a model of which transformers has an image classifier, timm models included.
        class_counts: training images of each class, by name, in label order.
        image_size: side in pixels; None takes that of the checkpoint (`saved_image_size`).
        drop_path: largest rate of stochastic depth, for a kind of model that has it (see `has_drop_path`).
        ignore_mismatched_classifier: give a checkpoint that was trained on other classes a new classifier.

    Raises:
        ValueError: no image classifier, other classes, missing weights, or weights tied to another image size.
    """
    config, names = load_config(pretrained), list(ClassPrior(class_counts).names)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"pretrained: {pretrained!r} is a {config.model_type!r} model, of which transformers has no image "
            "classifier; give a masked autoencoder ('vit_mae') or an image model"
        )
    image_size = image_size or saved_image_size(pretrained, config)
    rows = classifier_rows(config, names)
    if rows is None:
        set_class_names(config, names)
    model, info = _load(pretrained, config, drop_path)
    layers, heads = layer_ids(model), classifier_layers(model)
    for name in sorted(info["missing_keys"]):
        if layers.get(name) != max(layers.values()):
            raise ValueError(f"pretrained: {pretrained!r} lacks weights of its model, such as {name}")
    for name, layer in heads.items():
        is_new = f"{name}.weight" in info["missing_keys"]
        if rows is None and not is_new and not ignore_mismatched_classifier:
            raise ValueError(
                f"pretrained: {pretrained!r} was trained to tell other classes than the {len(names)} of the data; give "
                "--ignore_mismatched_classifier to start with a new classifier"
            )
        if rows is None or is_new:
            nn.init.trunc_normal_(layer.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(layer.bias)
        else:
            layer.load_state_dict({field: tensor[rows] for field, tensor in layer.state_dict().items()})
    for name, parameter in model.named_parameters():
        if name.endswith(".mask_token"):  # serves masked pretraining alone; several processes expect every gradient
            parameter.requires_grad_(False)
    model = with_image_size(model, image_size)
    set_class_names(model.config, names)
    return model


def classifier_rows(config: PreTrainedConfig, names: Sequence[str]) -> list[int] | None:
    """Which row of the checkpoint's classifier serves each class, or None if its classes are others.

    Placeholder names (LABEL_0, ...) say nothing: as many of them are taken to be the same classes in the same order.
    """
    if config.num_labels != len(names):
        return None
    if _class_names(config) == placeholder_names(len(names)):
        return list(range(len(names)))
    try:
        return match_labels(names, _class_names(config)).tolist()
    except ValueError:
        return None


def classifier_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that make the logits, by name: one, or several whose outputs the model averages (DeiT).

    Raises:
        ValueError: there is none.
    """
    base = model.base_model_prefix
    if hasattr(model, "timm_model"):
        timm_model: Any = model.timm_model
        heads = timm_model.get_classifier()
        heads = heads if isinstance(heads, tuple | list) else (heads,)
        inside = [(name, module) for name, module in model.named_modules() if any(module is head for head in heads)]
    else:
        inside = [(name, module) for name, module in model.named_modules() if not f"{name}.".startswith(f"{base}.")]
    layers = {
        name: module
        for name, module in inside
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no linear classifier for {model.config.num_labels} classes"
        )
    return layers


def has_drop_path(config: PreTrainedConfig) -> bool:
    """Whether the model drops paths in training: not every kind can (a ViT of transformers does not)."""
    timm_options = getattr(config, "model_args", None) or {}
    return bool(getattr(config, "drop_path_rate", 0.0) or timm_options.get("drop_path_rate", 0.0))


def saved_image_size(pretrained: str, config: PreTrainedConfig) -> int:
    """Side of the images that a checkpoint was made for: its image processor's crop, else what its config says."""
    processor = _image_processor(pretrained)
    for size in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        if size and size.get("height") and size.get("height") == size.get("width"):
            return int(size["height"])
    timm_size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [None])[-1]
    size = (getattr(config, "model_args", None) or {}).get("img_size", timm_size)
    size = size or getattr(config, "image_size", None) or 224
    return int(size if isinstance(size, int) else size[-1])


def saved_statistics(pretrained: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the pixels in 0 .. 1 that a checkpoint was trained with, if it says so."""
    processor = _image_processor(pretrained)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None:  # timm
        timm_config = getattr(processor, "data_config", {})
        mean, std = timm_config.get("mean"), timm_config.get("std")
    return None if mean is None or std is None else (list(mean), list(std))


def with_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """The model for images of another side, absolute positions interpolated; its config remembers the size.

    Raises:
        ValueError: other weights depend on the size, too.
    """
    config: Any = model.config
    if hasattr(model, "timm_model"):
        timm_model: Any = model.timm_model
        if hasattr(timm_model, "set_input_size"):
            timm_model.set_input_size(img_size=image_size)
            config.model_args = {**(config.model_args or {}), "img_size": image_size}
        config.image_size = image_size
        return model
    if getattr(config, "image_size", None) in (None, image_size, [image_size] * 2, (image_size,) * 2):
        config.image_size = image_size
        return model
    config = copy.deepcopy(config)
    config.image_size = image_size
    resized, weights = type(model)(config), model.state_dict()
    for name, tensor in resized.state_dict().items():
        if name.endswith(".position_embeddings") and tensor.shape != weights[name].shape:
            weights[name] = _interpolate(weights[name], tensor.shape[1], image_size // config.patch_size)
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"image_size: {name} of the pretrained model fits its own size alone; leave the option out"
            )
    resized.load_state_dict(weights)
    return resized


def _interpolate(positions: Tensor, num_positions: int, side: int) -> Tensor:
    """Position embeddings (1, K + T, D) with K leading tokens (CLS, distillation) for ``side * side`` patches."""
    before_patches = num_positions - side * side - 1  # of the K, the last one goes along and stays as it is
    resized = interpolate_position_embeddings(positions[:, before_patches:], side * side)
    return torch.cat([positions[:, :before_patches], resized], dim=1)


def _load(pretrained: str, config: PreTrainedConfig, drop_path: float) -> tuple[PreTrainedModel, dict[str, Any]]:
    attempts = [config]
    if config.model_type == "timm_wrapper":
        attempts.insert(0, copy.deepcopy(config))
        attempts[0].model_args = {**(config.model_args or {}), "drop_path_rate": drop_path}
    elif getattr(config, "drop_path_rate", None) is not None:
        config.drop_path_rate = drop_path
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a new classifier is meant
    try:
        for attempt in attempts:
            # A timm model without drop path does not know the argument.
            with contextlib.suppress(TypeError) if attempt is not config else contextlib.nullcontext():
                return AutoModelForImageClassification.from_pretrained(
                    pretrained, config=attempt, ignore_mismatched_sizes=True, output_loading_info=True
                )
        raise AssertionError("the last attempt returns or raises")
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(
            f"pretrained: {pretrained!r} cannot be loaded as an image classifier: {str(error).strip().splitlines()[0]}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)


def _class_names(config: Any) -> list[str]:
    return [str(config.id2label[label]) for label in range(config.num_labels)]


def _image_processor(pretrained: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(pretrained)
    except (OSError, ValueError):
        return None


def load_classifier(model: str | Path) -> tuple[PreTrainedModel, Any]:
    """An image classifier and its image processor, loaded natively from a folder or the Hub.

    Raises:
        ValueError: there is no such folder or model, or it is no image classifier.
    """
    return _load_with_processor("model", model, AutoModelForImageClassification, "an image classifier")


def load_autoencoder(mae: str | Path) -> tuple[LivtMAEForPreTraining, Any]:
    """A masked autoencoder and its image processor; ValueError as in `load_classifier`."""
    return _load_with_processor("mae", mae, LivtMAEForPreTraining, "a masked autoencoder")


def _load_with_processor(option: str, model: str | Path, model_class: Any, kind: str) -> tuple[Any, Any]:
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


@torch.no_grad()
def classifier_layer(model: PreTrainedModel, image_processor: Any) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose output is the logits: the one that gives them for an image.

    Raises:
        ValueError: no layer does (such as in DeiT's average of two), or it has no bias.
    """
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixel_values = image_processor(PIL.Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    outputs: dict[str, Tensor] = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name, module in layers.items()
    ]
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
