"""Transfer: any classifier or backbone of transformers (ViT, DINOv2, CLIP, SigLIP, timm) for other classes and sizes.

The classifier is kept if its classes are those of the dataset, in any order; otherwise it is reinitialized as LiVT's.
At another image size absolute positions are interpolated, as LiVT does from 224 to 384.

Legend: C classes, D width, T patch tokens.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ..class_names import class_names, match_labels, placeholder_names, set_class_names
from ..optimization import layer_ids
from ..prior import ClassPrior
from .configuration_livt import check_patch_grid
from .loading import classifier_layers, load_config, load_model
from .modeling_livt import CLASSIFIER_STD
from .towers import classifier_config, fixed_resolution, freeze_unused, load_tower, vision_config

_POSITIONS = (".position_embeddings", ".position_embedding.weight")


def load_pretrained_classifier(
    pretrained: str,
    class_counts: Mapping[str, int],
    *,
    image_size: int | None = None,
    drop_path: float = 0.0,
    ignore_mismatched_classifier: bool = False,
) -> PreTrainedModel:
    """Load an image classifier and fit it to the classes of ``class_counts`` and to ``image_size``.

    Args:
        pretrained: folder or Hub id of an image classifier, or of a backbone that transformers has one for: those of
            timm, CLIP and SigLIP with or without their text towers (which are left out) included.
        class_counts: training images per class, by name, in label order.
        image_size: side in pixels; None: that of the checkpoint (`saved_image_size`).
        drop_path: drop-path rate of the last block, if the architecture supports it (see `has_drop_path`).
        ignore_mismatched_classifier: reinitialize the classifier of a checkpoint trained on other classes.

    Returns:
        The model in float32; its config has ``image_size``, whatever the architecture. Parameters that the logits do
        not depend on are frozen (`freeze_unused`).

    Raises:
        ValueError: not an image classifier, other classes, missing weights, or weights tied to another image size.
    """
    config, names = load_config(pretrained), list(ClassPrior(class_counts).names)
    image_size = image_size or saved_image_size(pretrained, config)
    config = classifier_config(pretrained, config)
    rows = classifier_rows(config, names)
    if rows is None:
        set_class_names(config, names)
    model, missing = _load(pretrained, config, drop_path)
    for name, layer in classifier_layers(model).items():
        is_new = f"{name}.weight" in missing
        if rows is None and not is_new and not ignore_mismatched_classifier:
            raise ValueError(
                f"pretrained: {pretrained!r} was trained on other classes than the {len(names)} of the dataset; give "
                "--ignore_mismatched_classifier to reinitialize its classifier"
            )
        if rows is None or is_new:
            nn.init.trunc_normal_(layer.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(layer.bias)
        else:
            layer.load_state_dict({field: tensor[rows] for field, tensor in layer.state_dict().items()})
    model = with_image_size(model, image_size)
    freeze_unused(model, image_size)
    set_class_names(model.config, names)
    return model


def classifier_rows(config: PreTrainedConfig, names: Sequence[str]) -> list[int] | None:
    """Row of the checkpoint's classifier for each class, or None if it was trained on other classes.

    Placeholder names (LABEL_0, ...) carry no information: the same number of them is taken for the same classes in the
    same order.
    """
    known = class_names(config)
    if len(known) != len(names):
        return None
    if known == placeholder_names(len(names)):
        return list(range(len(names)))
    try:
        return match_labels(names, known).tolist()
    except ValueError:
        return None


def has_drop_path(config: PreTrainedConfig) -> bool:
    """Whether the model uses drop path in training; not every architecture supports it (transformers' ViT does not)."""
    timm_options = getattr(config, "model_args", None) or {}
    return bool(getattr(config, "drop_path_rate", 0.0) or timm_options.get("drop_path_rate", 0.0))


def saved_image_size(pretrained: str, config: PreTrainedConfig) -> int:
    """Image size in pixels that a checkpoint was trained with: its image processor's crop, else that of its config."""
    processor, tower = _image_processor(pretrained), vision_config(config)
    for size in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        if size and size.get("height") and size.get("height") == size.get("width"):
            return int(size["height"])
    if num_patches := getattr(tower, "num_patches", None):  # SigLIP 2, NaFlex
        return int(num_patches**0.5) * tower.patch_size
    timm_size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [None])[-1]
    size = (getattr(config, "model_args", None) or {}).get("img_size", timm_size)
    size = size or getattr(tower, "image_size", None) or 224
    return int(size if isinstance(size, int) else size[-1])


def saved_statistics(pretrained: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of pixels in 0 .. 1 in a checkpoint's image processor; None if it has none."""
    processor = _image_processor(pretrained)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None:  # timm
        timm_config = getattr(processor, "data_config", {})
        mean, std = timm_config.get("mean"), timm_config.get("std")
    return None if mean is None or std is None else (list(mean), list(std))


def with_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """Fit a model to another image size by interpolating absolute positions; its config records the size.

    Raises:
        ValueError: other weights depend on the image size.
    """
    config: Any = model.config
    if hasattr(model, "timm_model"):
        timm_model: Any = model.timm_model
        if hasattr(timm_model, "set_input_size"):
            timm_model.set_input_size(img_size=image_size)
            config.model_args = {**(config.model_args or {}), "img_size": image_size}
        config.image_size = image_size
        return model
    tower = vision_config(config)
    patch_size: Any = getattr(tower, "patch_size", None)
    if isinstance(patch_size, int) and any(name.endswith(_POSITIONS) for name in model.state_dict()):  # not of ConvNeXt
        check_patch_grid(image_size, patch_size)
    if getattr(tower, "image_size", None) in (None, image_size, [image_size] * 2, (image_size,) * 2):
        _set_image_size(config, image_size)
        return model
    config = copy.deepcopy(config)
    _set_image_size(config, image_size)
    resized, weights = type(model)(config), model.state_dict()
    for name, tensor in resized.state_dict().items():
        if name.endswith(_POSITIONS) and tensor.shape != weights[name].shape:
            # As the forward passes of transformers do it
            antialias = config.model_type == "dinov2_with_registers"
            weights[name] = _interpolate(weights[name], tensor.shape, image_size // patch_size, antialias)
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"image_size: {image_size} does not fit {name} of the pretrained model; leave the option out"
            )
    resized.load_state_dict(weights)
    return resized


def _set_image_size(config: PreTrainedConfig, image_size: int) -> None:
    """Record the size at the top, where this package reads it, and in the vision tower's config."""
    try:
        config.image_size = vision_config(config).image_size = image_size
    except StrictDataclassFieldValidationError:
        raise ValueError(
            f"pretrained: the config of a {config.model_type!r} model takes two sides as its image_size, which is not "
            "supported; choose another model"
        ) from None


def _interpolate(positions: Tensor, shape: torch.Size, side: int, antialias: bool) -> Tensor:
    """Resize positions, (1, K + T, D) or (K + T, D) with K leading tokens (CLS, distillation), to ``side ** 2``."""
    leading, width = shape[-2] - side * side, shape[-1]  # K, D
    tokens, patches = positions.reshape(-1, width).split([leading, positions.shape[-2] - leading])
    old_side = math.isqrt(len(patches))
    grid = patches.T.reshape(1, width, old_side, old_side)
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    resized = nn.functional.interpolate(grid, size=(side, side), **options)  # (1, D, side, side)
    return torch.cat([tokens, resized[0].flatten(1).T]).reshape(shape)


def _load(pretrained: str, config: PreTrainedConfig, drop_path: float) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32, and the names of the top layer's weights that the checkpoint lacks."""
    if load_config(pretrained).model_type != config.model_type:  # see `classifier_config`
        model = fixed_resolution(load_tower(pretrained, config))
        return model, [f"{name}.weight" for name in classifier_layers(model)]
    attempts = [config]
    if config.model_type == "timm_wrapper":
        attempts.insert(0, copy.deepcopy(config))
        attempts[0].model_args = {**(config.model_args or {}), "drop_path_rate": drop_path}
    elif getattr(config, "drop_path_rate", None) is not None:
        config.drop_path_rate = drop_path
    for attempt in attempts:
        # timm models without drop path do not accept the argument.
        with contextlib.suppress(TypeError) if attempt is not config else contextlib.nullcontext():
            model, missing = load_model(
                AutoModelForImageClassification,
                pretrained,
                "pretrained",
                config=attempt,
                optional=_top_layer,
                quiet=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,  # checkpoints in half precision too
            )
            return fixed_resolution(model), missing
    raise AssertionError("the last attempt returns or raises")


def _top_layer(model: PreTrainedModel) -> list[str]:
    layers = layer_ids(model)
    return [name for name, layer in layers.items() if layer == max(layers.values())]


def _image_processor(pretrained: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(pretrained)
    except (OSError, ValueError):
        return None
