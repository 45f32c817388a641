"""Official checkpoints of LiVT and MAE <-> native folders (`livt convert`).

An official file is a dict with `model` (the weights) and, if written during training, `optimizer`, `epoch`, `scaler`
and `args`, an `argparse.Namespace`. Settings that no option gives are taken from these `args` (LiVT:
`main_finetune.py`, `util/datasets.py`, `util/loss.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BeitForImageClassification, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from ..class_names import abbreviate
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_processor
from ..files import check_new_folder
from ..models.configuration_livt import LivtConfig, LivtMAEConfig
from ..models.loading import load_config, load_model
from ..models.modeling_livt import ViTForBalancedClassification
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from .key_map import check_plain_vit, decoder_fields, encoder_fields, key_map, kind_of, to_native, to_official
from .native import assign_weights, build_on_meta, class_fields, save_native
from .sources import DATASETS, SOURCES, Conversion

# `args.loss` of the official code; margin_bce is the name of Bal-BCE in its older logs
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
    """Convert an official checkpoint to a native folder with model, image processor and card.

    Args:
        checkpoint: official `.pth` file.
        output_dir: new or empty folder.
        source: "livt-finetune", "livt-pretrain" or "mae" (autoencoder, encoder alone, or classifier).
        labels: file of class names in label order: one per line, or JSON, a list or {label: name}.
        class_counts: JSON file of training images per class: {name: count}, or a list in label order.
        dataset: one of `DATASETS`, which the model was trained on; default: from the checkpoint's `args`. Selects the
            image statistics, and the published results of the card.
        num_attention_heads, decoder_num_attention_heads: needed for widths outside the ViT family.
        norm_pix_loss: whether an autoencoder predicts pixels normalized per patch; default: from `args`, else True.

    Raises:
        ValueError: a file or option that cannot be used; the message names it.
    """
    path, output_dir = Path(checkpoint), check_new_folder(output_dir)
    weights, args = read_checkpoint(path)
    kind, notes = kind_of(weights), list[str]()
    _check_kind(path, kind, source)
    if kind != "classifier" and (labels or class_counts):
        option = "labels" if labels else "class_counts"
        raise ValueError(f"{option}: {path} has no classifier; leave the option out")
    if dataset is None:
        dataset = next((name for name in DATASETS if DATASETS[name].official == args.get("dataset")), None)
    fields: dict[str, Any] = {}
    if kind == "classifier":
        fields = class_fields(len(weights["head.weight"]), labels, class_counts, notes, args.get("cls_num"))
        fields |= _loss_fields(source, args, notes)
        fields |= {"pretrained": f"a masked autoencoder of {SOURCES[source].title}"}
    elif kind == "autoencoder":
        fields = _masking_fields(norm_pix_loss, args, notes)
    try:
        model, native, dropped = _native_model(kind, weights, fields, num_attention_heads, decoder_num_attention_heads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    processor = image_processor(model.config.image_size, 0.875, *_statistics(kind, dataset, args, notes))
    conversion = Conversion(source, kind, path.name, len(weights), dropped, notes, dataset, _sha256(path))
    weights.clear()  # the file stays mapped as long as any of its tensors is referenced
    save_native(model, native, processor, conversion, output_dir)
    return conversion


def _native_model(
    kind: str, weights: Mapping[str, Tensor], fields: dict[str, Any], heads: int | None, decoder_heads: int | None
) -> tuple[Any, dict[str, Tensor], dict[str, str]]:
    """The model with its weights assigned, the native tensors, and the reason for each dropped part."""
    fields = encoder_fields(weights, heads) | fields
    if kind == "classifier":
        fields |= {"use_mean_pooling": "fc_norm.weight" in weights}
        model = build_on_meta(ViTForBalancedClassification, LivtConfig(**fields))
    elif kind == "autoencoder":
        model = build_on_meta(LivtMAEForPreTraining, LivtMAEConfig(**fields, **decoder_fields(weights, decoder_heads)))
    else:
        model = build_on_meta(ViTMAEModel, ViTMAEConfig(**fields))
    native, dropped = to_native(weights, key_map(model.config, encoder_only=kind == "encoder"))
    assign_weights(model, native)
    return model, native, dropped


def _check_kind(path: Path, kind: str, source: str) -> None:
    wanted = SOURCES[source].kind
    if kind == "unknown":
        raise ValueError(f"{path}: --source {source}: its 'model' is not a ViT of the official code")
    if wanted not in (None, kind):
        fitting = [name for name in SOURCES if SOURCES[name].kind in (None, kind)]
        raise ValueError(
            f"{path}: --source {source} needs the weights of a complete {wanted}, but this is "
            f"{'an' if kind[0] in 'ae' else 'a'} {kind}; use --source {' or '.join(fitting)}"
        )


def _loss_fields(source: str, args: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    default = "bal_bce" if source == "livt-finetune" else "ce"
    loss = OFFICIAL_LOSSES.get(str(args.get("loss")))
    if loss is None:
        notes.append(f"The file does not record its training loss; that of the source's method, {default}, is assumed.")
    # The official Bal-BCE ignores `bal_tau`.
    return {"loss": loss or default, "tau": _number(args, "bal_tau", 1.0) if loss == "bal_ce" else 1.0}


def _masking_fields(norm_pix_loss: bool | None, args: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if norm_pix_loss is None:
        norm_pix_loss = args.get("norm_pix_loss")
    if norm_pix_loss is None:
        norm_pix_loss = True
        notes.append(
            "The file does not record whether it predicts pixels normalized per patch; this is assumed, as both "
            "official codes train this way (except MAE's models for visualization: --norm_pix_loss false)."
        )
    return {"norm_pix_loss": bool(norm_pix_loss), "mask_ratio": _number(args, "mask_ratio", 0.75)}


def _statistics(kind: str, dataset: str | None, args: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any]:
    """Mean and standard deviation with which the official code normalizes the images of a dataset."""
    if dataset and (kind == "classifier" or not dataset.startswith("cifar")):
        return DATASETS[dataset].mean, DATASETS[dataset].std
    if dataset is None:
        unknown = f"dataset {args['dataset']} is unknown" if "dataset" in args else "file does not record its dataset"
        notes.append(f"The {unknown}; images are normalized with the statistics of ImageNet (see --dataset).")
    return IMAGENET_MEAN, IMAGENET_STD


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    value = args.get(name)
    return float(value) if isinstance(value, int | float) else default


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the weights (memory-mapped) and training arguments of an official checkpoint.

    Nothing in the file is executed: besides tensors and plain values only `argparse.Namespace` is allowed.

    Raises:
        ValueError: no such file, not a checkpoint, or one with another class, which the message names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give an official checkpoint (.pth)")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty; download it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files older than torch 1.6 are not zip archives and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # on a damaged file the unpickler can raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign:
            raise ValueError(
                f"{path}: refused without executing it: it contains {foreign[1]}; only tensors, plain values "
                "and argparse.Namespace are allowed"
            ) from None
        raise ValueError(f"{path}: is damaged or not a torch.save checkpoint; download it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found_keys = f" (only {abbreviate([str(key) for key in content], 3)})" if isinstance(content, dict) else ""
        raise ValueError(f"{path}: has no 'model'{found_keys}; give a checkpoint saved by the official code")
    weights = content["model"]
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name!r} in 'model' is not a floating-point tensor")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name} has non-finite values")
    dtypes = {str(tensor.dtype) for tensor in weights.values()}
    if len(dtypes) > 1:
        raise ValueError(f"{path}: its tensors have several dtypes, {', '.join(sorted(dtypes))}; cast them to one")
    args = content.get("args")
    return weights, vars(args) if isinstance(args, argparse.Namespace) else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert_to_official(model: str | Path, output: str | Path) -> int:
    """Write a classifier or masked autoencoder as an official checkpoint, a dict with `model` alone.

    Args:
        model: folder or Hub id.
        output: new `.pth` file.

    Returns:
        Number of tensors.

    Raises:
        ValueError: no such model, another architecture, or ``output`` exists.
    """
    if Path(output).exists():
        raise ValueError(f"{output}: already exists; give the name of a new file")
    config = load_config(model, "model")
    encoder_only = (config.architectures or [""])[0] == "ViTMAEModel"
    if config.model_type == "beit":
        check_plain_vit(model, config)
        native_class: Any = BeitForImageClassification
    elif config.model_type == "vit_mae":
        native_class = ViTMAEModel if encoder_only else ViTMAEForPreTraining
    else:
        raise ValueError(
            f"{model}: is a {config.model_type!r} model; only a classifier ('beit') or an autoencoder ('vit_mae') can "
            "be converted"
        )
    loaded, _ = load_model(native_class, model, "model")
    weights = to_official(loaded.state_dict(), key_map(config, encoder_only))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, output)
    return len(weights)
