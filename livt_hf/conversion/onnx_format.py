"""Out of transformers: to timm and ONNX (`livt export`), and to the official layout (`livt convert --to official`).

Legend: B batch, C classes, S image size.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import timm
import torch
from datasets import DatasetDict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, BeitForImageClassification, ViTMAEForPreTraining, ViTMAEModel

from .. import data
from ..evaluation.predictions import ProcessorTransform, mean_and_std
from ..files import publish_files
from ..models.loading import load_classifier
from ..reporting.provenance import hardware, versions
from . import key_map as official
from .official import TOLERANCE, check_output_dir, largest_difference

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONE_FILE_LIMIT = 1 << 30  # bytes of weights; a protobuf file ends at 2 GB, so larger ones go to model.onnx.data
TIMED_IMAGES, TIMED_RUNS = 8, 5
# What a BEiT must be to be a plain ViT, the only architecture that the official code and timm's ViT share with it.
_PLAIN_VIT = {
    "use_absolute_position_embeddings": True,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mask_token": False,
    "layer_scale_init_value": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": official.LAYER_NORM_EPS,
}


def convert_to_official(model: str | Path, output: str | Path) -> int:
    """Write the official `model` dict of a folder that holds a classifier or a masked autoencoder.

    Returns:
        The number of tensors.

    Raises:
        ValueError: no such folder, another architecture, or ``output`` exists.
    """
    if Path(output).exists():
        raise ValueError(f"{output}: exists already; give the name of a new file")
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"{model}: holds no config.json; give the folder that holds the trained model")
    config = AutoConfig.from_pretrained(model)
    encoder_only = (config.architectures or [""])[0] == "ViTMAEModel"
    if config.model_type == "beit":
        check_plain_vit(model, config)
        native_class: Any = BeitForImageClassification
    elif config.model_type == "vit_mae":
        native_class = ViTMAEModel if encoder_only else ViTMAEForPreTraining
    else:
        raise ValueError(f"{model}: is a {config.model_type!r} model; a classifier or autoencoder of ours is needed")
    loaded, info = native_class.from_pretrained(model, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{model}: lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    weights = official.to_official(loaded.state_dict(), official.key_map(config, encoder_only))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights}, output)
    return len(weights)


def check_plain_vit(model: str | Path, config: Any) -> None:
    """ValueError unless a BEiT is a plain ViT, as LiVT's classifier is."""
    for name, value in _PLAIN_VIT.items():
        if getattr(config, name) != value:
            raise ValueError(f"{model}: {name} is {getattr(config, name)!r}; this needs a plain ViT, with {value!r}")


# timm


def export_timm(model: str | Path, output_dir: str | Path) -> float:
    """Make a folder that `timm.create_model("local-dir:DIR", pretrained=True)` loads, and "hf-hub:ID" once uploaded.

    Args:
        model: folder or Hub id of a classifier that is a plain ViT.
        output_dir: new or empty folder.

    Returns:
        The largest difference of the logits, for two images of noise, after loading it with timm.

    Raises:
        ValueError: no such model, or one that timm's ViT does not have.
    """
    check_output_dir(output_dir)
    classifier: Any
    classifier, processor = load_classifier(model)
    config = classifier.config
    if config.model_type != "beit":
        raise ValueError(f"{model}: is a {config.model_type!r} model; a classifier of this package is needed")
    check_plain_vit(model, config)
    weights = official.to_official(classifier.state_dict(), official.key_map(config))
    with publish_files(Path(output_dir)) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        description = json.dumps(timm_config(config, processor), indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(description + "\n", encoding="utf-8")
        vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        difference = largest_difference(lambda pixels: classifier.eval()(pixels).logits, vit, config.image_size)
        assert difference <= TOLERANCE, difference
    return difference


def timm_config(config: Any, processor: Any) -> dict[str, Any]:
    """What config.json says to timm: architecture and sizes, classes, and how images are prepared."""
    pooling = "avg" if config.use_mean_pooling else "token"
    mean, std = mean_and_std(processor)
    return {
        "architecture": "vit_base_patch16_224",  # any of timm's plain ViTs; model_args set every size
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
        "label_names": [config.id2label[label] for label in range(config.num_labels)],
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
    """Crop size / shorter side, such that timm's floor(crop size / ratio) is the processor's shorter side again."""
    if not processor.do_center_crop or not processor.size.get("shortest_edge"):
        raise ValueError("preprocessor_config.json: a resize of the shortest edge and a centre crop are needed")
    crop, edge = processor.crop_size["height"], processor.size["shortest_edge"]
    return crop / edge if int(crop / (crop / edge)) == edge else crop / (edge + 0.5)


# ONNX


class _Logits(nn.Module):
    """A classifier that gives a tensor: (B, 3, S, S) -> (B, C)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(pixel_values).logits


def export_onnx(
    model: str | Path,
    output_dir: str | Path,
    dataset: str = "digits",
    split: str = "test",
    num_images: int = 64,
    **data_options: Any,
) -> dict[str, Any]:
    """Make a folder with model.onnx (any batch size), and compare it with torch on real images.

    Beside it lie config.json and preprocessor_config.json; how images are prepared, and the class names in label order,
    are in the file's own metadata too (`preprocessing`, `labels`). check.json is what this returns.

    Args:
        model: folder or Hub id of an image classifier.
        output_dir: new or empty folder.
        dataset, split, num_images: images to compare on, spread evenly over a split.
        data_options: further arguments of `load_long_tailed`, such as ``data_dir``.

    Returns:
        The largest difference of the logits, the share of images with the same prediction in percent, and the time of
        both, measured by turns in this process on as many threads.

    Raises:
        ValueError: no such model or data set, or the packages of the extra `export` are not installed.
    """
    check_output_dir(output_dir)
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format: onnx needs {', '.join(missing)}; install them with pip install 'livt-hf[export]'")
    if num_images < TIMED_IMAGES:
        raise ValueError(f"num_images: {num_images}; at least {TIMED_IMAGES} are needed")
    classifier, processor = load_classifier(model)
    logits = _Logits(classifier).eval()
    pixels = _real_images(processor, data.load_long_tailed(dataset, **data_options), split, num_images)  # (N, 3, S, S)
    with publish_files(Path(output_dir)) as folder:
        program: Any = torch.onnx.export(
            logits,
            (pixels[:2],),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        program.model.metadata_props.update(onnx_metadata(classifier.config, processor))
        weights = sum(parameter.nbytes for parameter in classifier.parameters())
        program.save(folder / "model.onnx", external_data=weights > ONE_FILE_LIMIT)
        classifier.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        result = {"model": Path(model).name, "dataset": Path(dataset).name, "split": split}
        result |= compare_with_onnx(logits, folder / "model.onnx", pixels)
        (folder / "check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def onnx_metadata(config: Any, processor: Any) -> dict[str, str]:
    """How pixels are prepared and what the logits stand for, each as JSON."""
    mean, std = mean_and_std(processor)
    preprocessing = {
        "convert": "RGB",
        "resize_shortest_edge": processor.size.get("shortest_edge"),
        "interpolation": PIL.Image.Resampling(processor.resample).name.lower(),
        "center_crop": dict(processor.crop_size) if processor.do_center_crop else None,
        "rescale": processor.rescale_factor if processor.do_rescale else 1,
        "mean": list(mean),
        "std": list(std),
        "layout": "NCHW",
    }
    names = [config.id2label[label] for label in range(config.num_labels)]
    return {"preprocessing": json.dumps(preprocessing), "labels": json.dumps(names, ensure_ascii=False)}


@torch.inference_mode()
def compare_with_onnx(model: Callable[[Tensor], Tensor], path: Path, pixels: Tensor) -> dict[str, Any]:
    """Logits, predictions and speed of a torch model and its ONNX form on the CPU; (N, 3, S, S) images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixel_values": batch.numpy()})[0])

    batches = pixels.split(TIMED_IMAGES)  # the last one may be smaller: the batch size is free
    expected, found = torch.cat([model(batch) for batch in batches]), torch.cat([run(batch) for batch in batches])
    seconds: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
    for _ in range(TIMED_RUNS):
        for name, function in (("torch", model), ("onnxruntime", run)):
            start = time.perf_counter()
            function(batches[0])
            seconds[name].append(time.perf_counter() - start)
    per_image = {name: 1000 * statistics.median(times) / TIMED_IMAGES for name, times in seconds.items()}
    difference = (expected - found).abs().max().item()
    assert difference <= 1e-3 * max(1.0, expected.abs().max().item()), difference
    return {
        "images": len(pixels),
        "largest_difference": difference,
        "largest_logit": expected.abs().max().item(),
        "top1_agreement": 100 * (expected.argmax(dim=1) == found.argmax(dim=1)).float().mean().item(),
        "milliseconds_per_image": per_image,
        "speed_ratio": per_image["torch"] / per_image["onnxruntime"],
        "threads": torch.get_num_threads(),
        "versions": {**versions(), "onnxruntime": onnxruntime.__version__},
        "hardware": hardware(),
    }


def _real_images(processor: Any, splits: DatasetDict, split: str, num_images: int) -> Tensor:
    """(N, 3, S, S) float32: images spread evenly over a split, prepared as the processor says."""
    if split not in splits:
        raise ValueError(f"split: the data set has no split {split!r}; choose one of {', '.join(splits)}")
    images = data.ImageDataset(splits[split], ProcessorTransform(processor))
    chosen = np.unique(np.linspace(0, len(images) - 1, num_images).round().astype(int)).tolist()
    pixel_values = torch.stack([torch.as_tensor(images[index]["pixel_values"]) for index in chosen])
    return data.normalize(pixel_values, *mean_and_std(processor))
