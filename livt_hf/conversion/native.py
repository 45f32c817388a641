"""Class names and training counts for a converted classifier, from the user's files or from the checkpoint itself."""

from __future__ import annotations

import hashlib
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
    "The class counts are the list cls_num of the file itself. Where the dataset is a folder, label i is the i-th "
    'class folder in the order of strings, in which "10" stands before "2": with folders named by category numbers, as '
    "for iNaturalist 2018, label i is not category i."
)


def class_fields(
    num_classes: int,
    labels: str | Path | None,
    class_counts: str | Path | None,
    notes: list[str],
    own_counts: Any = None,
    own_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Config fields for the classes, from the user's files, else from what the checkpoint itself has, else LABEL_i.

    Raises:
        ValueError: a file that cannot be read, another number of classes, names that differ or repeat.
    """
    where = f"labels: {labels}" if labels else "the source's class names"
    names = _read_labels(labels) if labels else list(own_names or [f"LABEL_{label}" for label in range(num_classes)])
    if len(names) != num_classes:
        raise ValueError(f"{where}: {len(names)} names, but the classifier has {num_classes} classes")
    if len(set(names)) != num_classes:
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: {repeated!r} stands there twice; give every class a name of its own with --labels")
    if class_counts is not None:
        return config_for_classes(_read_counts(class_counts, names))
    if own_counts is not None:
        if isinstance(own_counts, Sequence) and len(own_counts) == num_classes:
            notes.append(LABEL_ORDER)
            return config_for_classes(dict(zip(names, own_counts, strict=True)))
        notes.append("The list cls_num of the file does not have one count for each class; it is not used.")
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
            raise ValueError(f"labels: {path}: label {error} is missing; give {{label: name}} from 0 on") from None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"labels: {path}: give a list of names, {{label: name}}, or one name a line")
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
    check_same_names(names, content, "the classes (--labels tells their names and order)", f"class_counts {path}")
    return {name: content[name] for name in names}


def _read_text(option: str, path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{option}: {path}: cannot be read: {reason}") from None


@torch.inference_mode()
def largest_difference(model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Between the logits of two models for two images of noise, relative to the largest logit if that is above 1."""
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    return ((expected - other(pixels)).abs().max() / expected.abs().max().clamp(min=1.0)).item()


def on_meta(model_class: Any, config: Any) -> Any:
    """A model without memory for its weights, in evaluation mode."""
    with torch.device("meta"):
        return model_class(config).eval()


def fill(model: PreTrainedModel, native: Mapping[str, Tensor]) -> None:
    """Give a model its weights, without a copy.

    Raises:
        ValueError: a tensor of another shape.
    """
    for name, tensor in model.state_dict().items():
        if tensor.shape != native[name].shape:
            raise ValueError(f"{name} would be {tuple(native[name].shape)}, the rest needs {tuple(tensor.shape)}")
    model.load_state_dict(native, assign=True)


def save_native(
    model: Any, native: dict[str, Tensor], processor: Any, conversion: Conversion, output_dir: Path
) -> None:
    """Save model, image processor and card, then load the model natively and compare every weight.

    Empties ``native`` and the model on the way, so that source and result are never in memory together.
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
