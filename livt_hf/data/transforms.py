"""Transforms of a decoded image, uint8 (3, H, W) -> a dict of tensors.

Crops stay in uint8 and channels last in memory; what follows is done on batches (`batch_ops`). Random numbers come from
the global generators of `random`, numpy (in RandAugment) and torch, which `ImageDataset` seeds for each sample.

Training transforms have a second form for whole batches, faster and with the same results: if ``draws_first``, `draw`
can draw all random numbers of a sample before its image is changed; `assemble` makes the batch from the crops and the
draws.

Legend: B batch, S image size, H x W size of the decoded image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import PIL.Image
import torch
from transformers import BeitImageProcessor

from .cropping import Crop, crop_one, random_crop, resize_shorter_side
from .rand_augment import Drawn, build_rand_augment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PretrainTransform:
    """Masked pretraining (MAE): random resized crop, flip, and the noise whose order selects the masked patches.

    Returns ``{"pixel_values": uint8 (3, S, S), "noise": float32 (num_patches,)}``.

    Args:
        min_crop_scale: smallest crop area as a fraction of the image.
        horizontal_flip: probability of a flip.
    """

    draws_first = True

    def __init__(self, image_size: int, num_patches: int, min_crop_scale: float = 0.2, horizontal_flip: float = 0.5):
        self.image_size = image_size
        self.num_patches = num_patches
        self.min_crop_scale = _fraction("min_crop_scale", min_crop_scale)
        self.horizontal_flip = _fraction("horizontal_flip", horizontal_flip)

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = image.shape[-2:]
        crop, noise = self.draw(height, width)
        return {"pixel_values": crop_one(image, crop, self.image_size), "noise": noise}

    def draw(self, height: int, width: int) -> tuple[Crop, torch.Tensor]:
        """The crop of an image of this size, and the noise."""
        return random_crop(height, width, self.min_crop_scale, self.horizontal_flip), torch.rand(self.num_patches)

    def assemble(self, crops: torch.Tensor, drawn: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch of crops, uint8 (B, S, S, 3)."""
        return {"pixel_values": crops.permute(0, 3, 1, 2), "noise": torch.stack([*drawn])}


FinetuneDraw = tuple[list[Drawn], tuple[int, int, int, int], int]  # operations, erase_box, erase_seed


class FinetuneTransform:
    """Fine-tuning: random resized crop, flip, timm's RandAugment and the box of random erasing.

    The box is only drawn here; `erase` fills it after normalization. Returns ``{"pixel_values": uint8 (3, S, S),
    "erase_box": int64 (4,) as top, left, height, width (height 0: nothing is erased), "erase_seed": int64 ()}``.

    Args:
        min_crop_scale: smallest crop area as a fraction of the image.
        horizontal_flip: probability of a flip.
        rand_augment: description of a RandAugment in timm's format, or None.
        random_erasing: probability of erasing a box.
        mean: fill color of RandAugment, 0 to 1 per channel.
    """

    def __init__(
        self,
        image_size: int,
        min_crop_scale: float = 0.08,
        horizontal_flip: float = 0.5,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erasing: float = 0.25,
        mean: Sequence[float] = IMAGENET_MEAN,
    ):
        self.image_size = image_size
        self.min_crop_scale = _fraction("min_crop_scale", min_crop_scale)
        self.horizontal_flip = _fraction("horizontal_flip", horizontal_flip)
        self.random_erasing = _fraction("random_erasing", random_erasing)
        self.rand_augment = None if rand_augment is None else build_rand_augment(rand_augment, image_size, mean)

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = image.shape[-2:]
        crop = random_crop(height, width, self.min_crop_scale, self.horizontal_flip)
        pixels = crop_one(image, crop, self.image_size)  # (3, S, S)
        if self.rand_augment is not None:
            augmented = self.rand_augment(pixels.permute(1, 2, 0).contiguous().numpy())  # (S, S, 3)
            pixels = torch.from_numpy(augmented).permute(2, 0, 1)
        erase_box, erase_seed = self._draw_erasing()
        return {"pixel_values": pixels, "erase_box": torch.tensor(erase_box), "erase_seed": torch.tensor(erase_seed)}

    @property
    def draws_first(self) -> bool:
        return self.rand_augment is None or self.rand_augment.draws_first

    def draw(self, height: int, width: int) -> tuple[Crop, FinetuneDraw]:
        """The crop of an image of this size, and the rest."""
        crop = random_crop(height, width, self.min_crop_scale, self.horizontal_flip)
        operations = [] if self.rand_augment is None else self.rand_augment.draw()
        return crop, (operations, *self._draw_erasing())

    def assemble(self, crops: torch.Tensor, drawn: Sequence[FinetuneDraw]) -> dict[str, torch.Tensor]:
        """The batch of crops, uint8 (B, S, S, 3), which are changed."""
        operations, boxes, seeds = zip(*drawn, strict=True)
        if self.rand_augment is not None:
            self.rand_augment.apply(crops.numpy(), operations)
        return {
            "pixel_values": crops.permute(0, 3, 1, 2),
            "erase_box": torch.tensor(boxes),
            "erase_seed": torch.tensor(seeds),
        }

    def _draw_erasing(self) -> tuple[tuple[int, int, int, int], int]:
        return random_erase_box(self.image_size, self.random_erasing), random.getrandbits(62)


class EvalTransform:
    """Evaluation: resize the shorter side to ``image_size / crop_ratio``, then center crop.

    Above 224 pixels the shorter side is resized to ``image_size``, as in the official code. Equal to transformers'
    ``BeitImageProcessor`` with `shortest_edge` and this crop size (`image_processor`). Returns ``{"pixel_values": uint8
    (3, S, S)}``.
    """

    def __init__(self, image_size: int, crop_ratio: float = 0.875):
        self.image_size = image_size
        self.shortest_edge = int(image_size / crop_ratio) if image_size <= 224 else image_size

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        image = resize_shorter_side(image, self.shortest_edge)
        top, left = (image.shape[-2] - self.image_size) // 2, (image.shape[-1] - self.image_size) // 2
        image = image[:, top : top + self.image_size, left : left + self.image_size]
        return {"pixel_values": image}


def image_processor(
    image_size: int, crop_ratio: float, mean: Sequence[float], std: Sequence[float]
) -> BeitImageProcessor:
    """`EvalTransform` and `normalize` as an image processor, to be saved with a model."""
    return BeitImageProcessor(
        do_resize=True,
        size={"shortest_edge": EvalTransform(image_size, crop_ratio).shortest_edge},
        resample=PIL.Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        do_convert_rgb=True,  # without it gray and RGBA images crash a pipeline
        do_rescale=True,
        do_normalize=True,
        image_mean=list(mean),
        image_std=list(std),
    )


def random_erase_box(size: int, probability: float) -> tuple[int, int, int, int]:
    """Top, left, height, width as in timm's RandomErasing: 2 % to 1/3 of the area, log-uniform aspect 0.3 to 1/0.3.

    With probability 1 - ``probability``, or if no box fits, all are 0.
    """
    if random.random() < probability:
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * size * size
            ratio = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < size and width < size:
                return random.randint(0, size - height), random.randint(0, size - width), height, width
    return 0, 0, 0, 0


def _fraction(option: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{option}: {value} must be between 0 and 1")
    return value
