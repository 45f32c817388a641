"""Checkpoints of the official codes and of timm -> folders that transformers loads: `livt convert`.

A checkpoint's own `args` decide where no option does (LiVT: `main_finetune.py`, `util/datasets.py`, `util/loss.py`).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from transformers import (
    BeitForImageClassification,
    PreTrainedModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_processor
from ..files import publish_files
from ..models.configuration_livt import LivtConfig, LivtMAEConfig
from ..models.modeling_livt import ViTForBalancedClassification
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from . import key_map as official
from .native import class_fields
from .sources import DATA_SETS, SOURCES, Conversion, conversion_card

# `args.loss` of the official code. In its logs Bal-BCE has an earlier name.
OFFICIAL_LOSSES = {
    "CE": "ce",
    "LS_CE": "ce",
    "BCE": "bce",
    "Bal_CE": "bal_ce",
    "Bal_BCE": "bal_bce",
    "margin_bce": "bal_bce",
    "CB_CE": "cb_ce",
    "CB_BCE": "cb_bce",
    "MiSLAS": "las",
    "LDAM": "ldam",
    "LADE": "lade",
}
TOLERANCE = 1e-5  # of logits, for float32
NATIVE_CLASSES: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    ViTForBalancedClassification: BeitForImageClassification,
    LivtMAEForPreTraining: ViTMAEForPreTraining,
    ViTMAEModel: ViTMAEModel,
}


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    source: str,
    *,
    labels: str | Path | None = None,
    class_counts: str | Path | None = None,
    dataset: str | None = None,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    norm_pix_loss: bool | None = None,
) -> Conversion:
    """Make a folder with model, image processor and card of an official checkpoint.

    Args:
        checkpoint: official `.pth` file.
        output_dir: new or empty folder.
        source: "livt-finetune", "livt-pretrain" or "mae" (autoencoder, encoder alone, or classifier).
        labels: file with the class names in label order: one a line, or JSON, a list or {label: name}.
        class_counts: JSON file with the training images of each class: {name: count}, or a list in label order.
        dataset: one of `DATA_SETS`, which the model was trained on; by default what the checkpoint's `args` say. It
            decides the image statistics, and which published figures the card may show.
        num_attention_heads, decoder_num_attention_heads: needed for widths that are not those of the ViT family.
        norm_pix_loss: whether an autoencoder predicts pixels normalised per patch; by default what `args` say, or True.

    Raises:
        ValueError: an unusable file or option; the message names it.
    """
    path = Path(checkpoint)
    check_output_dir(output_dir)
    weights, args = official.read_checkpoint(path)
    kind = official.kind_of(weights)
    _check_kind(path, kind, source)
    notes: list[str] = []
    if dataset is None:
        dataset = next((name for name in DATA_SETS if DATA_SETS[name].official == args.get("dataset")), None)
    classes = {}
    if kind == "classifier":
        classes = class_fields(len(weights["head.weight"]), labels, class_counts, notes, args.get("cls_num"))
    elif labels or class_counts:
        raise ValueError(f"{'labels' if labels else 'class_counts'}: {path} holds no classifier; leave the option out")
    try:
        fields = official.encoder_fields(weights, num_attention_heads)
        if kind == "classifier":
            fields |= {
                "use_mean_pooling": "fc_norm.weight" in weights,
                "pretrained": f"a masked autoencoder of {SOURCES[source].title}",
                **_loss_fields(source, args, notes),
                **classes,
            }
            model = on_meta(ViTForBalancedClassification, LivtConfig(**fields))
        elif kind == "autoencoder":
            fields |= official.decoder_fields(weights, decoder_num_attention_heads)
            fields |= _masking_fields(norm_pix_loss, args, notes)
            model = on_meta(LivtMAEForPreTraining, LivtMAEConfig(**fields))
        else:
            model = on_meta(ViTMAEModel, ViTMAEConfig(**fields))
        native, dropped = official.to_native(weights, official.key_map(model.config, encoder_only=kind == "encoder"))
        fill(model, native)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    processor = image_processor(fields["image_size"], 0.875, *_statistics(kind, dataset, args, notes))
    conversion = Conversion(source, kind, path.name, len(weights), dropped, notes, dataset, _sha256(path))
    weights.clear()  # the mapped file is let go when the last of its tensors is
    save_native(model, native, processor, conversion, Path(output_dir))
    return conversion


def convert_timm(
    model: str, output_dir: str | Path, *, labels: str | Path | None = None, class_counts: str | Path | None = None
) -> Conversion:
    """Make a folder with model, image processor and card of a classifier of timm.

    Args:
        model: a plain `VisionTransformer` that pools the mean of the patches before its norm (`fc_norm`), or the CLS
            token after it: a folder, "hf-hub:ORG/NAME", or a name that `timm.create_model` knows.
        output_dir, labels, class_counts: as for `convert_checkpoint`.

    Raises:
        ValueError: timm cannot load it, or it is another architecture; the message says what does not fit.
    """
    check_output_dir(output_dir)
    vit: Any = _load_timm(model)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    weights, cfg, images = vit.state_dict(), vit.pretrained_cfg, timm.data.resolve_model_data_config(vit)
    notes = ["timm does not tell the training loss; cross-entropy is assumed."]
    if type(vit).__name__ != "VisionTransformer" or official.kind_of(weights) != "classifier":
        raise ValueError(f"{model}: is a {type(vit).__name__}; a plain VisionTransformer with a classifier is needed")
    if images["crop_mode"] != "center":
        raise ValueError(f"{model}: its crop mode is {images['crop_mode']!r}; only 'center' can be converted")
    classes = class_fields(len(weights["head.weight"]), labels, class_counts, notes, own_names=cfg.get("label_names"))
    try:
        fields = official.encoder_fields(weights, vit.blocks[0].attn.num_heads)
        config = LivtConfig(
            **fields, **classes, use_mean_pooling="fc_norm.weight" in weights, loss="ce", pretrained=f"timm {name}"
        )
        converted = on_meta(ViTForBalancedClassification, config)
        native, dropped = official.to_native(weights, official.key_map(config))
        fill(converted, native)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
    difference = largest_difference(vit, lambda pixels: converted(pixels).logits, config.image_size)
    if difference > TOLERANCE:  # what the names of tensors do not tell: pooling, activation, epsilon
        raise ValueError(f"{model}: is no plain ViT: converted, its logits would differ by {difference:.1g}")
    processor = image_processor(config.image_size, 0.875, images["mean"], images["std"])
    processor.size = {"shortest_edge": math.floor(config.image_size / images["crop_pct"])}
    processor.resample = str_to_pil_interp(images["interpolation"])
    conversion = Conversion("timm", "classifier", name, len(weights), dropped, notes, licence=cfg.get("license"))
    save_native(converted, native, processor, conversion, Path(output_dir))
    return conversion


def _load_timm(model: str) -> Any:
    """A model of timm with its weights, in evaluation mode. timm unpickles with `weights_only=True`."""
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    try:
        return timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # of timm, the Hub's client, torch or safetensors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{model}: timm cannot load it: {reason}") from None


@torch.inference_mode()
def largest_difference(model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Between the logits of two models for two images of noise, relative to the largest logit if that is above 1."""
    pixels = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    return ((expected - other(pixels)).abs().max() / expected.abs().max().clamp(min=1.0)).item()


def check_output_dir(output_dir: str | Path) -> None:
    """ValueError unless the folder is new or empty."""
    folder = Path(output_dir)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{output_dir}: exists and is not empty; give a new folder")


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


# What the config is told


def _check_kind(path: Path, kind: str, source: str) -> None:
    wanted = SOURCES[source].kind
    if kind == "unknown":
        raise ValueError(f"{path}: --source {source}: its 'model' is no ViT of the official code")
    if wanted not in (None, kind):
        fitting = [name for name in SOURCES if SOURCES[name].kind in (None, kind)]
        raise ValueError(
            f"{path}: --source {source} needs the weights of a whole {wanted}, this is "
            f"{'an' if kind[0] in 'ae' else 'a'} {kind}; use --source {' or '.join(fitting)}"
        )


def _loss_fields(source: str, args: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    default = "bal_bce" if source == "livt-finetune" else "ce"
    loss = OFFICIAL_LOSSES.get(str(args.get("loss")))
    if loss is None:
        notes.append(f"The file does not tell its training loss; that of the source's method is assumed, {default}.")
    # The official Bal-BCE ignores `bal_tau`.
    return {"loss": loss or default, "tau": _number(args, "bal_tau", 1.0) if loss == "bal_ce" else 1.0}


def _masking_fields(norm_pix_loss: bool | None, args: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if norm_pix_loss is None:
        norm_pix_loss = args.get("norm_pix_loss")
    if norm_pix_loss is None:
        norm_pix_loss = True
        notes.append(
            "The file does not tell whether it predicts pixels normalised per patch; it is assumed, as both official "
            "codes train so (not MAE's models for visualisation: --norm_pix_loss false)."
        )
    return {"norm_pix_loss": bool(norm_pix_loss), "mask_ratio": _number(args, "mask_ratio", 0.75)}


def _statistics(kind: str, dataset: str | None, args: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any]:
    """Mean and standard deviation that the official code normalises images of a data set with."""
    if dataset and (kind == "classifier" or not dataset.startswith("cifar")):
        return DATA_SETS[dataset].mean, DATA_SETS[dataset].std
    if dataset is None:
        unknown = f"does not know the data set {args['dataset']}" if "dataset" in args else "does not tell its data set"
        subject = "The official code" if "dataset" in args else "The file"
        notes.append(f"{subject} {unknown}; images are normalised with the statistics of ImageNet (see --dataset).")
    return IMAGENET_MEAN, IMAGENET_STD


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    value = args.get(name)
    return float(value) if isinstance(value, int | float) else default


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
