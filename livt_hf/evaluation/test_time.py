"""Test-time ensembling (`--tta`): the mean of a classifier's probabilities over several views of each image.

    p(y | x) = 1 / V * sum_v softmax(f(view_v(x)))

    flip      V = 2: what the image processor makes of the image, and its mirror image
    fivecrop  V = 5: the four corners and the center of the image, resized to slightly more than the crop

The five crops are those of LIFT (Shi et al., ICML 2024, arXiv 2309.10019): trainer.py of github.com/shijxcs/LIFT
resizes the shorter side to the input size plus 24 pixels at 224 (``expand`` in its utils/config.py). At other sizes the
margin is in proportion: the input size * 24 / 224, rounded, at least 1 pixel. Where the image processor squashes images
to a square instead of cropping them, so do the views. LIFT takes the mean of the logits; here it is that of the
probabilities, whose logarithm then serves as logits.

Legend: B batch, V views, C classes, H x W input size of the model, h x w size of the decoded image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers.image_utils import pil_torch_interpolation_mapping

VIEWS = {"none": 1, "flip": 2, "fivecrop": 5}
MARGIN = 24 / 224  # of the resized image beyond the crop, relative to the crop
WARPED_FROM = 384  # pixels from which a processor with ``crop_pct`` (ConvNeXt's) squashes images


class ViewProcessor:
    """An image processor that makes all views of an image: `(image, **options) -> pixel_values (V, 3, H, W)`.

    Without test-time ensembling there is one view, the processor's own.

    Args:
        image_processor: of a checkpoint, timm's included.
        tta: a key of `VIEWS`.

    Raises:
        ValueError: another ``tta``, or five crops with a processor that does not resize to a fixed size.
    """

    def __init__(self, image_processor: Any, tta: str = "none"):
        if tta not in VIEWS:
            raise ValueError(f"tta: {tta!r} is unknown; use one of: {', '.join(VIEWS)}")
        self.image_processor = image_processor
        self.tta = tta
        self.size = _fixed_size(image_processor) if tta == "fivecrop" else None

    def __call__(self, image: Tensor | PIL.Image.Image, **options: Any) -> Tensor:
        """``image``: uint8 (3, h, w) or RGB; ``options``: of the image processor's call, as ``do_normalize=False``."""
        if self.size is None:
            pixels = self.image_processor(image, return_tensors="pt", **options).pixel_values  # (1, 3, H, W)
            return torch.cat([pixels, pixels.flip(-1)]) if self.tta == "flip" else pixels
        crops = five_crops(_as_tensor(image), self.size, *_geometry(self.image_processor))
        if hasattr(self.image_processor, "data_config"):  # timm's: it can only do all of its steps
            config = self.image_processor.data_config
            return functional.normalize(crops / 255, config["mean"], config["std"])
        options = {"input_data_format": "channels_first", **options, "do_resize": False, "do_center_crop": False}
        return self.image_processor(list(crops), return_tensors="pt", **options).pixel_values


def five_crops(
    image: Tensor, size: tuple[int, int], keep_aspect: bool, interpolation: InterpolationMode | int
) -> Tensor:
    """The corners (top left, top right, bottom left, bottom right) and the center of a resized image, uint8.

    Args:
        image: uint8 (3, h, w).
        size: (H, W) of the crops.
        keep_aspect: resize the shorter side to the longer one of ``size`` plus its margin; otherwise both sides, each
            to its own plus its margin.

    Returns:
        (5, 3, H, W).
    """
    height, width = (side + margin(side) for side in size)
    target = [max(height, width)] if keep_aspect else [height, width]
    resized = functional.resize(image, target, interpolation=interpolation, antialias=True)
    return torch.stack(functional.five_crop(resized, list(size)))


def margin(side: int) -> int:
    """Pixels by which the resized image is larger than a crop of ``side`` pixels: 24 at 224."""
    return max(1, round(MARGIN * side))


def ensemble_logits(logits_of_views: Sequence[Tensor]) -> Tensor:
    """Logits, float32 (B, C), whose softmax is the mean of the softmax of each view's logits (B, C)."""
    log_probabilities = torch.stack([logits.float().log_softmax(dim=-1) for logits in logits_of_views])  # (V, B, C)
    return log_probabilities.logsumexp(dim=0) - math.log(len(logits_of_views))


def _as_tensor(image: Tensor | PIL.Image.Image) -> Tensor:
    """uint8 (3, h, w)."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _fixed_size(image_processor: Any) -> tuple[int, int]:
    """(H, W) of all its outputs; ValueError if it does not resize, or if the size depends on the image."""
    shapes = {
        tuple(image_processor(PIL.Image.new("RGB", size), return_tensors="pt").pixel_values.shape[-2:])
        for size in ((48, 64), (64, 48))
    }
    if len(shapes) > 1 or not getattr(image_processor, "do_resize", True):
        raise ValueError(
            f"tta: fivecrop needs an image processor that resizes all images to one size, which this model's "
            f"{type(image_processor).__name__} does not; use flip"
        )
    return shapes.pop()


def _geometry(image_processor: Any) -> tuple[bool, InterpolationMode | int]:
    """Whether its resizing keeps the aspect ratio, and its interpolation."""
    if hasattr(image_processor, "data_config"):
        config: Mapping[str, Any] = image_processor.data_config
        return config.get("crop_mode") != "squash", InterpolationMode(config["interpolation"])
    edge = image_processor.to_dict()["size"].get("shortest_edge")
    is_warped = getattr(image_processor, "crop_pct", None) is not None and (edge or 0) >= WARPED_FROM
    return edge is not None and not is_warped, pil_torch_interpolation_mapping[image_processor.resample]
