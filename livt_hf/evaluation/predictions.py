"""Predictions of a model over a split: labels, predicted classes, confidences, and logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import data

Statistics = Sequence[float]  # of the pixels in 0 .. 1, per channel


def choose_device(device: str | None) -> str:
    """``device``, or by default the GPU if there is one. Raises ValueError where there is no such device."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: {device!r} is unknown; use cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device!r} is not there; this machine has {torch.cuda.device_count()} usable GPUs")
    return device


class ProcessorTransform:
    """Resize and crop of a saved image processor: uint8 (3, h, w) -> ``pixel_values`` uint8 (3, H, W), not normalized.

    Hence evaluation, `livt predict` and a pipeline see the same pixels, whichever processor a checkpoint has.

    Raises:
        ValueError: a processor that always normalizes, as that of timm's own checkpoints.
    """

    def __init__(self, image_processor: Any):
        if not hasattr(image_processor, "do_normalize"):
            raise ValueError(
                f"model: its {type(image_processor).__name__} cannot leave out the normalization; evaluate what `livt "
                "finetune --pretrained` makes of this model, which has another processor"
            )
        self.image_processor = image_processor

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        batch = self.image_processor(
            image,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
            input_data_format="channels_first",
        )
        return {"pixel_values": batch["pixel_values"][0]}


def mean_and_std(image_processor: Any) -> tuple[Statistics, Statistics]:
    """The statistics that the processor normalizes pixels in 0 .. 1 with."""
    if not image_processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(image_processor.image_mean), tuple(image_processor.image_std)


@torch.no_grad()  # not inference_mode: a model that goes on training would keep inference tensors
def predict_split(
    model: PreTrainedModel,
    loader: Iterable[Mapping[str, Tensor]],
    mean: Statistics,
    std: Statistics,
    device: str | torch.device = "cpu",
    label_of: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Run the model over a split and keep a few numbers of each image.

    Args:
        model: image classifier; is put on ``device`` and into evaluation mode.
        loader: yields ``pixel_values``, uint8 (B, 3, H, W), and ``labels``, int64 (B,).
        mean, std: of the pixels in 0 .. 1, per channel.
        label_of: int64 (classes of the data,), the model's label of each of the data's; by default they are the same.
        shifts: float (P, C), added to the logits for further predictions.

    Returns:
        The model's ``labels`` and ``predictions``, int64 (N,); ``confidences`` and ``true_probabilities``, float64
        (N,): the softmax probabilities of the prediction and of the true class; ``in_top5``, bool (N,): whether the
        true class is among the five most probable ones. With ``shifts`` also ``shifted_predictions``, int64 (N, P).

    Raises:
        ValueError: a logit is not finite.
    """
    model.to(device).eval()  # type: ignore[arg-type]
    mapping = None if label_of is None else torch.from_numpy(label_of)
    # Python numbers, not arrays: these would lie between the freed logits of each batch, so that the allocator could
    # not use their space again and memory grew as if all logits were kept.
    parts: dict[str, list[Any]] = {}
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=None):
        pixel_values = data.normalize(batch["pixel_values"].to(device, non_blocking=True), mean, std)
        logits = model(pixel_values.to(model.dtype)).logits.float()  # (B, C)
        if not torch.isfinite(logits).all():
            raise ValueError("model: its logits are not finite; the checkpoint is damaged, or its training diverged")
        labels = (batch["labels"] if mapping is None else mapping[batch["labels"]]).to(device)  # (B,)
        probabilities = logits.softmax(dim=-1)
        confidences, predictions = probabilities.max(dim=-1)
        best = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        kept = {
            "labels": labels,
            "predictions": predictions,
            "confidences": confidences.double(),
            "true_probabilities": probabilities.gather(1, labels[:, None])[:, 0].double(),
            "in_top5": (best == labels[:, None]).any(dim=1),
        }
        if shifts is not None:
            moved = [(logits + torch.from_numpy(shift).to(logits)).argmax(dim=-1) for shift in shifts]
            kept["shifted_predictions"] = torch.stack(moved, dim=1)  # (B, P)
        for name, values in kept.items():
            parts.setdefault(name, []).extend(values.tolist())
    return {name: np.array(values) for name, values in parts.items()}


@torch.no_grad()
def split_logits(
    model: PreTrainedModel, split: Dataset, image_processor: Any, batch_size: int, num_workers: int, device: str | None
) -> tuple[Tensor, Tensor]:
    """Logits, float32 (N, C), and the model's labels, int64 (N,), of a split; classes are matched by name."""
    for option, value, smallest in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < smallest:
            raise ValueError(f"{option}: {value}; at least {smallest} is needed")
    device = choose_device(device)
    config: Any = model.config
    names = [config.id2label[label] for label in range(config.num_labels)]
    label_of = torch.from_numpy(data.match_labels(split.features["label"].names, names, "the dataset"))
    mean, std = mean_and_std(image_processor)
    images = data.ImageDataset(split, ProcessorTransform(image_processor))
    model.to(device).eval()  # type: ignore[arg-type]
    logits, labels = [], []
    loader = data.evaluation_loader(images, batch_size, num_workers)
    for batch in tqdm(loader, desc="temperature", unit="batch", disable=None):
        pixel_values = data.normalize(batch["pixel_values"].to(device), mean, std)
        logits.append(model(pixel_values.to(model.dtype)).logits.float().cpu())
        labels.append(label_of[batch["labels"]])
    model.to("cpu")  # type: ignore[arg-type]
    return torch.cat(logits), torch.cat(labels)
