"""Native classifier -> ONNX, compared with torch on real images (`livt export --format onnx`).

Legend: B batch, C classes, S image size.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn

from .. import data
from ..class_names import class_names
from ..config.groups import DataArguments
from ..evaluation.examples import evenly_spaced, processed_images
from ..evaluation.predictions import mean_and_std
from ..evaluation.splits import open_dataset
from ..files import check_new_folder, publish_files, read_run
from ..models.loading import load_classifier
from ..reporting.export_card import export_card
from ..reporting.provenance import hardware, versions

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONE_FILE_LIMIT = 1 << 30  # bytes of weights; larger ones go to model.onnx.data, as protobuf files are limited to 2 GB
TIMED_IMAGES, TIMED_RUNS = 8, 5
NOISE = "random noise"

logger = logging.getLogger(__name__)


class _Logits(nn.Module):
    """Classifier that returns a tensor: (B, 3, S, S) -> (B, C)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(pixel_values).logits


def export_onnx(
    model: str | Path,
    output_dir: str | Path,
    dataset: str | None = None,
    split: str | None = None,
    num_images: int = 64,
    **data_options: Any,
) -> dict[str, Any]:
    """Export a classifier to model.onnx, with a dynamic batch size, and compare it with torch on images.

    The folder also gets config.json (with the class names, ``id2label``), preprocessor_config.json, check.json (the
    returned dict) and a card. Image preprocessing and class names in label order are in the metadata of model.onnx, too
    (`preprocessing`, `labels`).

    Args:
        model: folder or Hub id of an image classifier.
        output_dir: new or empty folder.
        dataset, split, num_images: images to compare on, spread evenly over a split. By default the dataset that the
            model was trained on, according to its run.json, or random noise if there is none or it cannot be loaded;
            and the first of the splits test, validation and train that there is.
        data_options: further arguments of `load_long_tailed`, such as ``data_dir``.

    Returns:
        Largest difference of the logits, top-1 agreement in percent, and milliseconds per image of both, timed
        alternately on the same number of threads.

    Raises:
        ValueError: no such model or dataset, or the packages of the extra `export` are not installed.
    """
    output_dir = check_new_folder(output_dir)
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format: onnx needs {', '.join(missing)}; install them with pip install 'livt-hf[export]'")
    if num_images < TIMED_IMAGES:
        raise ValueError(f"num_images: {num_images}; at least {TIMED_IMAGES} are needed")
    classifier, processor = load_classifier(model)
    logits = _Logits(classifier).eval()
    pixels, origin = _images_to_compare_on(model, processor, dataset, split, num_images, data_options)
    with publish_files(output_dir) as folder:
        program: Any = torch.onnx.export(
            logits,
            (pixels[:1].repeat(2, 1, 1, 1),),  # of a batch of 1, the size would become fixed
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
        result = {"model": Path(model).resolve().name, **origin}
        result |= compare_with_onnx(logits, folder / "model.onnx", pixels)
        (folder / "check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        card = export_card("onnx", model, classifier, output_dir, result, preprocessing_steps(processor))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return result


def onnx_metadata(config: Any, processor: Any) -> dict[str, str]:
    """Image preprocessing and class names in label order, each as JSON."""
    labels = json.dumps(class_names(config), ensure_ascii=False)
    return {"preprocessing": json.dumps(preprocessing_steps(processor)), "labels": labels}


def preprocessing_steps(processor: Any) -> dict[str, Any]:
    """What an image processor does to an image, in this order."""
    edge, (mean, std) = processor.size.get("shortest_edge"), mean_and_std(processor)
    return {
        "convert": "RGB",
        "resize_shortest_edge": edge,
        "resize": None if edge else {"height": processor.size["height"], "width": processor.size["width"]},
        "interpolation": PIL.Image.Resampling(processor.resample).name.lower(),
        "center_crop": dict(processor.crop_size) if processor.do_center_crop else None,
        "rescale": processor.rescale_factor if processor.do_rescale else 1,
        "mean": list(mean),
        "std": list(std),
        "layout": "NCHW",
    }


@torch.inference_mode()
def compare_with_onnx(model: Callable[[Tensor], Tensor], path: Path, pixels: Tensor) -> dict[str, Any]:
    """Compare a torch model with its ONNX export on the CPU for images (N, 3, S, S): logits, predictions, speed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixel_values": batch.numpy()})[0])

    batches = pixels.split(TIMED_IMAGES)  # the last one may be smaller, which also tests the dynamic batch size
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


def _images_to_compare_on(
    model: str | Path,
    processor: Any,
    dataset: str | None,
    split: str | None,
    num_images: int,
    data_options: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """Preprocessed images, float32 (N, 3, S, S), and the ``dataset`` and ``split`` that they are from."""
    if dataset:
        splits, name = open_dataset(dataset, split, **data_options)
    else:
        splits, name = _training_dataset(Path(model))
    if splits is None:
        size = _input_size(processor)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (num_images, 3, *size), dtype=torch.uint8, generator=generator)
        return data.normalize(noise, *mean_and_std(processor)), {"dataset": NOISE, "split": None}
    chosen = split or next(name for name in ("test", "validation", "train") if name in splits)
    pixels = _evenly_spaced_images(splits[chosen], processor, num_images)
    return pixels, {"dataset": Path(name).name, "split": chosen}


def _training_dataset(model: Path) -> tuple[DatasetDict | None, str]:
    """The dataset in the run.json of a model folder, and its name; None, which the log explains, if there is none."""
    run = read_run(model) if model.is_dir() else None
    if run is None:
        logger.info(f"{model} has no record of its training images: it is compared on {NOISE}; --dataset names images")
        return None, NOISE
    known = {entry.name for entry in dataclasses.fields(DataArguments)}
    source = DataArguments(**{name: value for name, value in run["arguments"].items() if name in known})
    try:
        return open_dataset(source.dataset, **source.data_options(run["arguments"]["seed"]))
    except ValueError as error:
        logger.info(f"the training images cannot be loaded ({error}): it is compared on {NOISE}")
        return None, NOISE


def _input_size(processor: Any) -> tuple[int, int]:
    """Height and width of the processed images."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2


def _evenly_spaced_images(images: Dataset, processor: Any, num_images: int) -> Tensor:
    """Preprocessed images spread evenly over a split, float32 (N, 3, S, S)."""
    pixel_values = processed_images(images, processor, evenly_spaced(len(images), num_images))
    return data.normalize(pixel_values, *mean_and_std(processor))
