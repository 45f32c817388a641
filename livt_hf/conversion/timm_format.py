"""timm's ViT classifiers -> native folders (`livt convert --source timm`), and back (`livt export --format timm`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import PIL.Image
import timm
import timm.data
from safetensors.torch import save_file
from timm.data.transforms import str_to_pil_interp

from ..class_names import class_names
from ..data.transforms import image_processor
from ..evaluation.predictions import mean_and_std
from ..files import check_new_folder, publish_files
from ..models.configuration_livt import LivtConfig
from ..models.loading import load_classifier
from ..models.modeling_livt import ViTForBalancedClassification
from ..reporting.export_card import export_card
from .key_map import check_plain_vit, encoder_fields, key_map, kind_of, to_native, to_official
from .native import TOLERANCE, assign_weights, build_on_meta, class_fields, largest_difference, save_native
from .sources import Conversion


def convert_timm(
    model: str, output_dir: str | Path, *, labels: str | Path | None = None, class_counts: str | Path | None = None
) -> Conversion:
    """Convert a classifier of timm to a native folder with model, image processor and card.

    Args:
        model: a plain `VisionTransformer` that pools the mean of the patches before its norm (`fc_norm`), or the CLS
            token after it: a folder, "hf-hub:ORG/NAME", or a model name of timm.
        output_dir, labels, class_counts: as for `convert_checkpoint`.

    Raises:
        ValueError: timm cannot load it, or it is another architecture; the message names the difference.
    """
    output_dir = check_new_folder(output_dir)
    vit: Any = _load_timm(model)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    weights, cfg, images = vit.state_dict(), vit.pretrained_cfg, timm.data.resolve_model_data_config(vit)
    notes = ["timm does not record the training loss; cross-entropy is assumed."]
    if type(vit).__name__ != "VisionTransformer" or kind_of(weights) != "classifier":
        raise ValueError(f"{model}: is a {type(vit).__name__}; a plain VisionTransformer with a classifier is needed")
    if images["crop_mode"] != "center":
        raise ValueError(f"{model}: its crop mode is {images['crop_mode']!r}; only 'center' can be converted")
    classes = class_fields(len(weights["head.weight"]), labels, class_counts, notes, own_names=cfg.get("label_names"))
    try:
        fields = encoder_fields(weights, vit.blocks[0].attn.num_heads)
        config = LivtConfig(
            **fields, **classes, use_mean_pooling="fc_norm.weight" in weights, loss="ce", pretrained=f"timm {name}"
        )
        converted = build_on_meta(ViTForBalancedClassification, config)
        native, dropped = to_native(weights, key_map(config))
        assign_weights(converted, native)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
    difference = largest_difference(vit, lambda pixels: converted(pixels).logits, config.image_size)
    if difference > TOLERANCE:  # settings that tensor names do not show: pooling, activation, epsilon
        raise ValueError(f"{model}: is not a plain ViT: after conversion its logits differ by {difference:.1g}")
    processor = image_processor(config.image_size, 0.875, images["mean"], images["std"])
    processor.size = {"shortest_edge": math.floor(config.image_size / images["crop_pct"])}
    processor.resample = str_to_pil_interp(images["interpolation"])
    conversion = Conversion("timm", "classifier", name, len(weights), dropped, notes, license=cfg.get("license"))
    save_native(converted, native, processor, conversion, output_dir)
    return conversion


def _load_timm(model: str) -> Any:
    """Load a pretrained timm model in evaluation mode. timm unpickles with `weights_only=True`."""
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    try:
        return timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # from timm, the Hub's client, torch or safetensors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{model}: timm cannot load it: {reason}") from None


def export_timm(model: str | Path, output_dir: str | Path) -> float:
    """Write a folder that `timm.create_model("local-dir:DIR", pretrained=True)` loads, or "hf-hub:ID" after uploading.

    It contains the weights, timm's config.json (with the class names, ``label_names``) and a card.

    Args:
        model: folder or Hub id of a classifier that is a plain ViT.
        output_dir: new or empty folder.

    Returns:
        Largest difference of the logits on two noise images, with the folder loaded by timm.

    Raises:
        ValueError: no such model, or not a plain ViT.
    """
    output_dir = check_new_folder(output_dir)
    classifier: Any
    classifier, processor = load_classifier(model)
    config = classifier.config
    if config.model_type != "beit":
        raise ValueError(
            f"{model}: is a {config.model_type!r} model; only classifiers of this package ('beit') can be exported"
        )
    check_plain_vit(model, config)
    weights = to_official(classifier.state_dict(), key_map(config))
    with publish_files(output_dir) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        description = json.dumps(timm_config(config, processor), indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(description + "\n", encoding="utf-8")
        vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        difference = largest_difference(lambda pixels: classifier.eval()(pixels).logits, vit, config.image_size)
        assert difference <= TOLERANCE, difference
        card = export_card("timm", model, classifier, output_dir, {"largest_difference": difference})
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def timm_config(config: Any, processor: Any) -> dict[str, Any]:
    """timm's config.json: architecture and sizes, classes, image preprocessing."""
    pooling = "avg" if config.use_mean_pooling else "token"
    mean, std = mean_and_std(processor)
    return {
        "architecture": "vit_base_patch16_224",  # any plain ViT of timm: model_args set every size
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": pooling,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "num_classes": config.num_labels,
            "global_pool": pooling,
        },
        "label_names": class_names(config),
        "pretrained_cfg": {
            "tag": "livt",
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "interpolation": PIL.Image.Resampling(processor.resample).name.lower(),
            "crop_pct": crop_ratio(processor),
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": config.num_labels,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def crop_ratio(processor: Any) -> float:
    """Crop size / shortest edge, chosen so that timm's floor(crop size / ratio) is the processor's shortest edge."""
    if not processor.do_center_crop or not processor.size.get("shortest_edge"):
        raise ValueError("preprocessor_config.json: a resize of the shortest edge and a center crop are needed")
    crop, edge = processor.crop_size["height"], processor.size["shortest_edge"]
    return crop / edge if int(crop / (crop / edge)) == edge else crop / (edge + 0.5)
