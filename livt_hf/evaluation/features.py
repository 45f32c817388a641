"""Features of the images of a split, by any model, computed once and kept on disk (`feature_cache`).

Legend: B batch, N images, D width.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from .. import data
from ..data.transforms import image_processor as evaluation_processor
from ..models.features import linear_layers, pooled_features
from ..models.loading import load_autoencoder, load_config, load_image_processor, load_model
from ..models.transfer import saved_image_size, saved_statistics
from ..reporting.blocks import counted
from .feature_cache import cache_file, read_features, writing
from .predictions import ProcessorTransform, check_loader_options, choose_device, mean_and_std

logger = logging.getLogger(__name__)
TIMM_CROP = 0.875  # timm's default crop_pct


def split_features(
    model: PreTrainedModel,
    split: Dataset,
    image_processor: Any,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    cache: bool = True,
    max_bad_images: int | None = None,
    bad_images_log: str | Path | None = None,
) -> np.ndarray:
    """Features of all images of a split, float32 (N, D), in order (`pooled_features`).

    They are computed in evaluation mode, with the evaluation transform of the processor, in the dtype of the model and
    under an autocast that the caller has entered. The model stays on the device.

    Args:
        model: any classifier, model without a classifier, or masked autoencoder.
        split: images as loaded by `livt_hf.data`.
        device: e.g. "cuda:1"; by default the GPU if there is one.
        cache: read the features from disk where the same have been computed before, and keep them there otherwise.
        max_bad_images: up to this number, unreadable images get a row of NaN; None: each is an error.
        bad_images_log: file to which unreadable images are appended; not if the features are read from disk.

    Raises:
        ValueError: no images, an unreadable one (or too many of them), or features that are not finite.
    """
    check_loader_options(batch_size, num_workers)
    device = choose_device(device)
    if not len(split):
        raise ValueError("split: it has no images; name another one")
    file = cache_file(model, split, image_processor, device) if cache else None
    features = None if file is None else read_features(file, len(split))
    what = f"features of {counted(len(split), 'image')}"
    if features is not None and np.isnan(features[:, 0]).sum() <= (max_bad_images or 0):
        logger.info(f"{what}: read from {file}")
        return features
    started = time.perf_counter()
    images = data.ImageDataset(
        split, ProcessorTransform(image_processor), max_bad_images=max_bad_images or 0, bad_images_log=bad_images_log
    )
    replace = max_bad_images is not None
    batches = _feature_batches(model, images, image_processor, batch_size, num_workers, device, replace)
    features, done = None, 0
    with writing(file) as write:
        for batch in tqdm(batches, "features", -(-len(split) // batch_size), unit="batch", disable=None):
            write(batch)
            if features is None:
                features = np.empty((len(split), batch.shape[1]), dtype=np.float32)
            features[done : done + len(batch)] = batch
            done += len(batch)
    logger.info(f"{what}: computed in {time.perf_counter() - started:.1f} s")
    assert features is not None
    return features


@torch.no_grad()
def _feature_batches(
    model: PreTrainedModel,
    images: data.ImageDataset,
    image_processor: Any,
    batch_size: int,
    num_workers: int,
    device: str,
    replace: bool,
) -> Iterator[np.ndarray]:
    """Features (B, D) of each batch; with ``replace``, NaN for unreadable images, which otherwise are an error."""
    mean, std = mean_and_std(image_processor)
    # A key with an epoch is one of training: an unreadable image is replaced by another, whose index it then has.
    keys: Any = [(0, index) for index in range(len(images))]
    keyed: Any = Subset(images, keys) if replace else images
    first = 0
    with _evaluating(model.to(device)):  # type: ignore[arg-type]
        for batch in data.evaluation_loader(keyed, batch_size, num_workers):
            pixel_values = data.normalize(batch["pixel_values"].to(device, non_blocking=True), mean, std)
            features = pooled_features(model, pixel_values.to(model.dtype)).float().cpu().numpy()  # (B, D)
            if not np.isfinite(features).all():
                raise ValueError("model: its features are not finite; the checkpoint is damaged, or it diverged")
            features[batch["index"].numpy() != np.arange(first, first + len(features))] = np.nan
            first += len(features)
            yield features


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def load_feature_model(model: str | Path) -> tuple[PreTrainedModel, Any]:
    """Load any classifier, vision tower or masked autoencoder, and its image processor, for `split_features`.

    The classifier of a checkpoint without one (a CLIP or DINOv2 tower) is random: only its input counts.

    Raises:
        ValueError: there is no such model, it is damaged or incomplete, or it has no image processor.
    """
    config = load_config(model, "model")
    if config.model_type == "vit_mae":
        return load_autoencoder(model)
    has_class = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    model_class = AutoModelForImageClassification if has_class else AutoModel
    loaded, _ = load_model(model_class, model, "model", optional=_classifier_weights, quiet=True)
    image_processor = load_image_processor(model)
    if not hasattr(image_processor, "do_normalize"):  # that of timm's own checkpoints, which always normalizes
        crop_ratio = (getattr(config, "pretrained_cfg", None) or {}).get("crop_pct") or TIMM_CROP
        statistics = saved_statistics(str(model))
        assert statistics is not None  # such a processor is made of them
        image_processor = evaluation_processor(saved_image_size(str(model), config), crop_ratio, *statistics)
    return loaded, image_processor


def _classifier_weights(model: PreTrainedModel) -> list[str]:
    return [f"{name}.{part}" for name, layer in linear_layers(model).items() for part in layer.state_dict()]
