"""timm's RandAugment, made faster and compatible with Pillow 13.

- What is drawn for an image is separate from what is done to it, so that the images of a batch for which the same
  operation is drawn are changed together (`image_ops`). Draws and, but for rounding in shear and translation, pixels
  are timm's.
- Posterize keeps at least one bit. timm asks for 0 bits in about 1 of 1,000 draws, which Pillow 13 refuses.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import PIL.Image
from timm.data import auto_augment

from .image_ops import OPERATIONS

ONE_BY_ONE = ("Rotate", "GaussianBlur")  # Pillow's are as fast as any that give the same pixels
MAX_PIXELS = 2**16  # changed together; more would not stay in the processor's cache

Drawn = tuple[int, tuple]  # the number of an operation, and what its function takes beside the image


def build_rand_augment(description: str, image_size: int, mean: Sequence[float]) -> RandAugment:
    """The RandAugment of timm's training transform for this description; bicubic.

    Args:
        description: timm's format, such as "rand-m9-mstd0.5-inc1".
        mean: fill color, 0 to 1 per channel.

    Raises:
        ValueError: a description that timm cannot parse.
    """
    options = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": PIL.Image.Resampling.BICUBIC,
    }
    try:
        augment = auto_augment.rand_augment_transform(description, options)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"rand_augment: {description!r} is invalid; use one like 'rand-m9-mstd0.5-inc1'") from error
    return RandAugment(augment)


class RandAugment:
    """Draws operations and applies them to images, uint8 (H, W, 3).

    Attributes:
        draws_first: whether `draw` is all that draws random numbers. An operation of timm that is unknown here might
            draw more when it is applied; then images must be augmented one by one, by calling this object.
    """

    def __init__(self, augment: auto_augment.RandAugment):
        self.ops = augment.ops
        self.num_layers = augment.num_layers
        self.choice_weights = augment.choice_weights
        self.functions = [op.aug_fn for op in self.ops]
        self.draws_first = all(op.name in OPERATIONS or op.name in ONE_BY_ONE for op in self.ops)
        for op in self.ops:
            op.aug_fn = _arguments
            if op.name.startswith("Posterize"):
                op.level_fn = functools.partial(_at_least_one, op.level_fn)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Draw and apply one operation after the other."""
        for number in self._choose():
            arguments = self.ops[number](None)
            if arguments is not None:
                image = self._operate(number, image[None], [arguments])[0]
        return image

    def draw(self) -> list[Drawn]:
        """The operations of an image, from the global generators of numpy and `random`."""
        drawn = ((number, self.ops[number](None)) for number in self._choose())
        return [(number, arguments) for number, arguments in drawn if arguments is not None]

    def apply(self, images: np.ndarray, drawn: Sequence[Sequence[Drawn]]) -> None:
        """Change each of the images, (B, H, W, 3), in place by its operations."""
        together = max(1, MAX_PIXELS // (images.shape[1] * images.shape[2]))
        for layer in itertools.zip_longest(*drawn):
            groups = defaultdict(list)
            for image, operation in enumerate(layer):
                if operation is not None:
                    groups[operation[0]].append(image)
            for number, members in groups.items():
                for start in range(0, len(members), together):
                    chunk = members[start : start + together]
                    where = slice(chunk[0], chunk[0] + 1) if len(chunk) == 1 else chunk  # a slice needs no copy
                    images[where] = self._operate(number, images[where], [layer[image][1] for image in chunk])

    def _choose(self) -> list[int]:
        """As timm: operations may repeat unless they are weighted."""
        count = len(self.ops)
        if self.choice_weights is None:  # what np.random.choice does, without its checks, which take as long again
            return np.random.randint(0, count, self.num_layers).tolist()  # noqa: NPY002
        return np.random.choice(count, self.num_layers, replace=False, p=self.choice_weights).tolist()  # noqa: NPY002

    def _operate(self, number: int, images: np.ndarray, arguments: Sequence[tuple]) -> np.ndarray:
        """One operation on images (n, H, W, 3)."""
        op = self.ops[number]
        if op.name in OPERATIONS:
            levels = np.array([level[0] if level else 0 for level in arguments])  # (n,)
            return OPERATIONS[op.name](images, levels, op.kwargs["fillcolor"])
        function = functools.partial(self.functions[number], **op.kwargs)
        pairs = zip(images, arguments, strict=True)
        return np.stack([np.asarray(function(PIL.Image.fromarray(image), *level)) for image, level in pairs])


def _arguments(image: None, *arguments: float, **_) -> tuple:
    """In place of the function of one of timm's operations: what it would be called with."""
    return arguments


def _at_least_one(level_fn, level: float, options: dict) -> tuple[int]:
    return (max(1, level_fn(level, options)[0]),)
