"""Checkpoints of the official codes and of timm -> folders that transformers loads: `livt convert`.

A checkpoint's own `args` decide where no option does (LiVT: `main_finetune.py`, `util/datasets.py`, `util/loss.py`).
"""

from __future__ import annotations

import argparse
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
from ..files import check_output_dir
from ..models.configuration_livt import LivtConfig, LivtMAEConfig
from ..models.loading import load_config, load_model
from ..models.modeling_livt import ViTForBalancedClassification
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from .key_map import check_plain_vit, decoder_fields, encoder_fields, key_map, kind_of, to_native, to_official
from .native import _sha256, class_fields, fill, on_meta, save_native
from .sources import DATA_SETS, SOURCES, Conversion

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
        norm_pix_loss: whether an autoencoder predicts pixels normalized per patch; by default what `args` say, or True.

    Raises:
        ValueError: an unusable file or option; the message names it.
    """
    path = Path(checkpoint)
    check_output_dir(output_dir)
    weights, args = read_checkpoint(path)
    kind = kind_of(weights)
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
        fields = encoder_fields(weights, num_attention_heads)
        if kind == "classifier":
            fields |= {
                "use_mean_pooling": "fc_norm.weight" in weights,
                "pretrained": f"a masked autoencoder of {SOURCES[source].title}",
                **_loss_fields(source, args, notes),
                **classes,
            }
            model = on_meta(ViTForBalancedClassification, LivtConfig(**fields))
        elif kind == "autoencoder":
            fields |= decoder_fields(weights, decoder_num_attention_heads)
            fields |= _masking_fields(norm_pix_loss, args, notes)
            model = on_meta(LivtMAEForPreTraining, LivtMAEConfig(**fields))
        else:
            model = on_meta(ViTMAEModel, ViTMAEConfig(**fields))
        native, dropped = to_native(weights, key_map(model.config, encoder_only=kind == "encoder"))
        fill(model, native)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    processor = image_processor(fields["image_size"], 0.875, *_statistics(kind, dataset, args, notes))
    conversion = Conversion(source, kind, path.name, len(weights), dropped, notes, dataset, _sha256(path))
    weights.clear()  # the mapped file is let go when the last of its tensors is
    save_native(model, native, processor, conversion, Path(output_dir))
    return conversion


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
            "The file does not tell whether it predicts pixels normalized per patch; it is assumed, as both official "
            "codes train so (not MAE's models for visualization: --norm_pix_loss false)."
        )
    return {"norm_pix_loss": bool(norm_pix_loss), "mask_ratio": _number(args, "mask_ratio", 0.75)}


def _statistics(kind: str, dataset: str | None, args: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any]:
    """Mean and standard deviation that the official code normalizes images of a dataset with."""
    if dataset and (kind == "classifier" or not dataset.startswith("cifar")):
        return DATA_SETS[dataset].mean, DATA_SETS[dataset].std
    if dataset is None:
        unknown = f"does not know the dataset {args['dataset']}" if "dataset" in args else "does not tell its dataset"
        subject = "The official code" if "dataset" in args else "The file"
        notes.append(f"{subject} {unknown}; images are normalized with the statistics of ImageNet (see --dataset).")
    return IMAGENET_MEAN, IMAGENET_STD


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    value = args.get(name)
    return float(value) if isinstance(value, int | float) else default


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights (mapped from the file, not copied) and training arguments of an official checkpoint.

    Nothing in the file is run: beside tensors and plain values only an `argparse.Namespace` is let in.

    Raises:
        ValueError: no such file, not a checkpoint, or one that holds another class (which is named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give an official checkpoint (.pth)")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty; download it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files of before torch 1.6 are no zip archives and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign:
            raise ValueError(
                f"{path}: refused, nothing in it was run: it holds {foreign[1]}; only tensors, plain values "
                "and argparse.Namespace are let in"
            ) from None
        raise ValueError(f"{path}: is damaged, or no checkpoint of torch.save; download it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found_keys = f" (it holds {abbreviate([str(key) for key in content], 3)})" if isinstance(content, dict) else ""
        raise ValueError(f"{path}: has no 'model'{found_keys}; give a checkpoint as the official code saves it")
    weights = content["model"]
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name!r} in 'model' is no tensor of floating-point numbers")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name} holds values that are not finite")
    dtypes = {str(tensor.dtype) for tensor in weights.values()}
    if len(dtypes) > 1:
        raise ValueError(f"{path}: its tensors are of several types, {', '.join(sorted(dtypes))}; make them the same")
    args = content.get("args")
    return weights, vars(args) if isinstance(args, argparse.Namespace) else {}


def convert_to_official(model: str | Path, output: str | Path) -> int:
    """Write the official `model` dict of a folder that holds a classifier or a masked autoencoder.

    Returns:
        The number of tensors.

    Raises:
        ValueError: no such folder, another architecture, or ``output`` exists.
    """
    if Path(output).exists():
        raise ValueError(f"{output}: exists already; give the name of a new file")
    config = load_config(model, "model")
    encoder_only = (config.architectures or [""])[0] == "ViTMAEModel"
    if config.model_type == "beit":
        check_plain_vit(model, config)
        native_class: Any = BeitForImageClassification
    elif config.model_type == "vit_mae":
        native_class = ViTMAEModel if encoder_only else ViTMAEForPreTraining
    else:
        raise ValueError(f"{model}: is a {config.model_type!r} model; a classifier or autoencoder of ours is needed")
    loaded, _ = load_model(native_class, model, "model")
    weights = to_official(loaded.state_dict(), key_map(config, encoder_only))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, output)
    return len(weights)
