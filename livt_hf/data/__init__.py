"""In: the name of a benchmark, a path or a Hub id.

Out: long-tailed splits, and batches of augmented images in a reproducible order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..class_names import match_labels
    from .batch_ops import erase, normalize
    from .dataset import ImageDataset
    from .decoding import BadImageError, decode_image
    from .load import load_long_tailed
    from .loader import TrainingBatches, evaluation_loader, on_device, training_loader
    from .long_tail import class_counts, long_tailed_indices
    from .mixup import Mixup
    from .transforms import EvalTransform, FinetuneTransform, PretrainTransform

__all__ = [
    "BadImageError",
    "EvalTransform",
    "FinetuneTransform",
    "ImageDataset",
    "Mixup",
    "PretrainTransform",
    "TrainingBatches",
    "class_counts",
    "decode_image",
    "erase",
    "evaluation_loader",
    "load_long_tailed",
    "long_tailed_indices",
    "match_labels",
    "normalize",
    "on_device",
    "training_loader",
]

_MODULE_OF = {
    "BadImageError": ".decoding",
    "EvalTransform": ".transforms",
    "FinetuneTransform": ".transforms",
    "ImageDataset": ".dataset",
    "Mixup": ".mixup",
    "PretrainTransform": ".transforms",
    "TrainingBatches": ".loader",
    "class_counts": ".long_tail",
    "decode_image": ".decoding",
    "erase": ".batch_ops",
    "evaluation_loader": ".loader",
    "load_long_tailed": ".load",
    "long_tailed_indices": ".long_tail",
    "match_labels": "..class_names",
    "normalize": ".batch_ops",
    "on_device": ".loader",
    "training_loader": ".loader",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
