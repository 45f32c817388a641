"""Native side of a conversion: class names and counts; assigning weights; saving and verifying a folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BeitForImageClassification, PreTrainedModel, ViTMAEForPreTraining, ViTMAEModel

from ..class_names import check_same_names, label_names
from ..files import publish_files
from ..models.modeling_livt import ViTForBalancedClassification, config_for_classes
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from .sources import Conversion, conversion_card

TOLERANCE = 1e-5  # of logits, for float32
NATIVE_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    ViTForBalancedClassification: BeitForImageClassification,
    LivtMAEForPreTraining: ViTMAEForPreTraining,
    ViTMAEModel: ViTMAEModel,
}
LABEL_ORDER = (
    "The class counts are the list cls_num of the file itself. For a dataset in folders, label i is the i-th class "
    'folder in string order, in which "10" comes before "2": with folders named by category numbers, as for '
    "iNaturalist 2018, label i is not category i."
)


def class_fields(
    num_classes: int,
    labels: str | Path | None,
    class_counts: str | Path | None,
    notes: list[str],
    own_counts: Any = None,
    own_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Config fields of the classes, from the user's files, else from the checkpoint, else LABEL_i without counts.

    Args:
        num_classes: number of classes of the classifier.
        labels: file of class names, as for `convert_checkpoint`.
        class_counts: file of training images per class, as for `convert_checkpoint`.
        notes: assumptions are appended here.
        own_counts: class counts in the checkpoint, in label order.
        own_names: class names in the checkpoint, in label order.

    Raises:
        ValueError: a file that cannot be read, another number of classes, names that differ or repeat.
    """
    where = f"labels: {labels}" if labels else "the source's class names"
    names = _read_labels(labels) if labels else list(own_names or [f"LABEL_{label}" for label in range(num_classes)])
    if len(names) != num_classes:
        raise ValueError(f"{where}: {len(names)} names, but the classifier has {num_classes} classes")
    if len(set(names)) != num_classes:
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: {repeated!r} is repeated; give every class a unique name with --labels")
    if class_counts is not None:
        return config_for_classes(_read_counts(class_counts, names))
    if own_counts is not None:
        if isinstance(own_counts, Sequence) and len(own_counts) == num_classes:
            notes.append(LABEL_ORDER)
            return config_for_classes(dict(zip(names, own_counts, strict=True)))
        notes.append("The list cls_num of the file does not have one count per class and is not used.")
    return label_names(names)


def _read_labels(path: str | Path) -> list[str]:
    text = _read_text("labels", path)
    try:
        content = json.loads(text)
    except ValueError:
        return [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        try:
            content = [content[str(label)] for label in range(len(content))]
        except KeyError as error:
            raise ValueError(f"labels: {path}: label {error} is missing; give {{label: name}} starting at 0") from None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"labels: {path}: give a list of names, {{label: name}}, or one name per line")
    return content


def _read_counts(path: str | Path, names: Sequence[str]) -> dict[str, int]:
    try:
        content = json.loads(_read_text("class_counts", path))
    except ValueError as error:
        raise ValueError(f"class_counts: {path}: cannot be read as JSON ({error})") from None
    if isinstance(content, list):
        if len(content) != len(names):
            raise ValueError(f"class_counts: {path}: {len(content)} counts for a classifier of {len(names)} classes")
        return dict(zip(names, content, strict=True))
    if not isinstance(content, dict):
        raise ValueError(f"class_counts: {path}: give {{name: count}}, or a list of counts in label order")
    check_same_names(names, content, "the classes (see --labels)", f"class_counts {path}")
    return {name: content[name] for name in names}


def _read_text(option: str, path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{option}: {path}: cannot be read: {reason}") from None


@torch.inference_mode()
def largest_difference(model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Largest difference of two models' logits on two noise images, relative to the largest logit if above 1."""
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    return ((expected - other(pixels)).abs().max() / expected.abs().max().clamp(min=1.0)).item()


def build_on_meta(model_class: Any, config: Any) -> Any:
    """Build a model without memory for its weights, in evaluation mode."""
    with torch.device("meta"):
        return model_class(config).eval()


def assign_weights(model: PreTrainedModel, native: Mapping[str, Tensor]) -> None:
    """Assign weights to a model without copying them.

    Raises:
        ValueError: a tensor has another shape.
    """
    for name, tensor in model.state_dict().items():
        if tensor.shape != native[name].shape:
            raise ValueError(f"{name}: shape {tuple(native[name].shape)} instead of {tuple(tensor.shape)}")
    model.load_state_dict(native, assign=True)


def save_native(
    model: Any, native: dict[str, Tensor], processor: Any, conversion: Conversion, output_dir: Path
) -> None:
    """Save model, image processor and card, then load the model natively and compare every weight.

    Frees ``native`` and the model's weights before loading, so that source and result are never both in memory.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = conversion_card(conversion, model.config, parameters, output_dir.resolve().name)
    native_class: Any = NATIVE_CLASSES[type(model)]
    with publish_files(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        expected = {name: _checksum(tensor) for name, tensor in native.items()}
        native.clear()
        model.to("meta")
        loaded, info = native_class.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        assert {name: _checksum(tensor) for name, tensor in loaded.state_dict().items()} == expected


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
