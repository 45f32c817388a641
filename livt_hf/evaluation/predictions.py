"""Run a model over a split: predicted classes, confidences, logits, or any other outputs.

Legend: B batch, V views, N images, C classes, P logit shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import data
from ..class_names import class_names
from ..reporting.blocks import counted
from .test_time import ViewProcessor, ensemble_logits

Statistics = Sequence[float]  # of the pixels in 0 .. 1, per channel


def choose_device(device: str | None) -> str:
    """``device``, by default the GPU if there is one. Raises ValueError if this machine has no such device."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: {device!r} is unknown; use cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {device!r} is not available; this machine has {counted(torch.cuda.device_count(), 'usable GPU')}"
        )
    return device


class ProcessorTransform:
    """Resize and crop of a saved image processor: uint8 (3, h, w) -> ``pixel_values`` uint8 (3, H, W), not normalized.

    Evaluation, `livt predict` and a pipeline thus see the same pixels, whichever processor a checkpoint has.

    Args:
        tta: with test-time ensembling, ``pixel_values`` are those of all views, (V, 3, H, W).

    Raises:
        ValueError: a processor that always normalizes, as that of timm's own checkpoints, or see `ViewProcessor`.
    """

    def __init__(self, image_processor: Any, tta: str = "none"):
        if not hasattr(image_processor, "do_normalize"):
            raise ValueError(
                f"model: its {type(image_processor).__name__} cannot leave out the normalization; fine-tune the model "
                "with `livt finetune --pretrained`, which saves another processor, and evaluate the result"
            )
        self.views = ViewProcessor(image_processor, tta)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        pixels = self.views(image, do_rescale=False, do_normalize=False, input_data_format="channels_first")
        return {"pixel_values": pixels[0] if self.views.tta == "none" else pixels}


def mean_and_std(image_processor: Any) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation, per channel, with which the processor normalizes pixels in 0..1."""
    if not image_processor.do_normalize:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(image_processor.image_mean), tuple(image_processor.image_std)


@torch.no_grad()  # not inference_mode: a model that is trained further would keep inference tensors
def batch_outputs(
    forward: Callable[[Tensor], Tensor],
    loader: Iterable[Mapping[str, Tensor]],
    mean: Statistics,
    std: Statistics,
    device: str | torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model over a dataset: yield its outputs, float32 (B, ...), and the labels, int64 (B,), of each batch.

    Args:
        forward: maps normalized pixel values, float32 (B, 3, H, W) on ``device``, to the outputs to keep.
        loader: yields ``pixel_values``, uint8 (B, 3, H, W) or with views (B, V, 3, H, W), and ``labels``.
        mean, std: of the pixels in 0..1, per channel.
    """
    for batch in loader:
        pixel_values = data.normalize(batch["pixel_values"].to(device, non_blocking=True), mean, std)
        yield forward(pixel_values).float(), batch["labels"]


def batch_logits(
    model: PreTrainedModel,
    loader: Iterable[Mapping[str, Tensor]],
    mean: Statistics,
    std: Statistics,
    device: str | torch.device,
    label_of: np.ndarray | None = None,
    description: str = "evaluate",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits, float32 (B, C), and the model's labels, int64 (B,), of each batch, both on ``device``.

    The model is moved to ``device`` and set to evaluation mode. Arguments as in `predict_split`; ``description`` labels
    the progress bar. Logits of several views become those of their mean probability, one view after the other so that
    the device needs the memory of one.

    Raises:
        ValueError: a logit is not finite.
    """
    model.to(device).eval()  # type: ignore[arg-type]
    mapping = None if label_of is None else torch.from_numpy(label_of)

    def forward(pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.to(model.dtype)
        if pixel_values.ndim == 4:
            return model(pixel_values).logits
        return ensemble_logits([model(view).logits for view in pixel_values.unbind(dim=1)])

    batches = tqdm(loader, desc=description, unit="batch", disable=None)
    for logits, labels in batch_outputs(forward, batches, mean, std, device):
        if not torch.isfinite(logits).all():
            raise ValueError("model: its logits are not finite; the checkpoint is damaged, or its training diverged")
        yield logits, (labels if mapping is None else mapping[labels]).to(device)


def predict_split(
    model: PreTrainedModel,
    loader: Iterable[Mapping[str, Tensor]],
    mean: Statistics,
    std: Statistics,
    device: str | torch.device = "cpu",
    label_of: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Run a classifier over a split and keep a few numbers per image.

    Args:
        model: image classifier; it is moved to ``device`` and set to evaluation mode.
        loader: yields ``pixel_values``, uint8 (B, 3, H, W) or with views (B, V, 3, H, W), and ``labels``, int64 (B,).
        mean, std: of the pixels in 0..1, per channel.
        label_of: int64 (classes of the data,), the model's label of each class of the data; by default the same label.
        shifts: float (P, C), each added to the logits for further predictions.

    Returns:
        The model's ``labels`` and ``predictions``, int64 (N,); ``confidences`` and ``true_probabilities``, float64
        (N,): the softmax probabilities of the prediction and of the true class; ``in_top5``, bool (N,): whether the
        true class is among the five most probable ones. With ``shifts`` also ``shifted_predictions``, int64 (N, P).

    Raises:
        ValueError: a logit is not finite.
    """
    # Lists of Python numbers: arrays would be allocated between the freed logits of the batches, so that the allocator
    # could not reuse that space and memory would grow as if all logits were kept.
    parts: dict[str, list[Any]] = {}
    for logits, labels in batch_logits(model, loader, mean, std, device, label_of):
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
            shifted = [(logits + torch.from_numpy(shift).to(logits)).argmax(dim=-1) for shift in shifts]
            kept["shifted_predictions"] = torch.stack(shifted, dim=1)  # (B, P)
        for name, values in kept.items():
            parts.setdefault(name, []).extend(values.tolist())
    return {name: np.array(values) for name, values in parts.items()}


def split_logits(
    model: PreTrainedModel, split: Dataset, image_processor: Any, batch_size: int, num_workers: int, device: str | None
) -> tuple[Tensor, Tensor]:
    """Logits, float32 (N, C), and the model's labels, int64 (N,), of a split, on the CPU; classes are matched by name.

    The model is on the CPU afterwards.
    """
    check_loader_options(batch_size, num_workers)
    device = choose_device(device)
    label_of = data.match_labels(split.features["label"].names, class_names(model.config), "the dataset")
    loader = data.evaluation_loader(
        data.ImageDataset(split, ProcessorTransform(image_processor)), batch_size, num_workers
    )
    batches = batch_logits(model, loader, *mean_and_std(image_processor), device, label_of, "temperature")
    logits, labels = zip(*((logits.cpu(), labels.cpu()) for logits, labels in batches), strict=True)
    model.to("cpu")  # type: ignore[arg-type]
    return torch.cat(logits), torch.cat(labels)


def check_loader_options(batch_size: int, num_workers: int) -> None:
    """ValueError if ``batch_size`` is below 1 or ``num_workers`` negative."""
    for option, value, smallest in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < smallest:
            raise ValueError(f"{option}: {value}; at least {smallest} is needed")
