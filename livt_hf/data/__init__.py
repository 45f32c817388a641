"""Long-tailed image data: named sources and the user's own, fast decoding and augmentation, deterministic loading."""

from .bad_images import BadImageError
from .class_names import match_labels
from .decoding import decode_image
from .loading import ImageDataset, TrainingBatches, evaluation_loader, training_loader
from .long_tail import class_counts, long_tailed_indices
from .mixup import Mixup
from .sources import load_long_tailed
from .transforms import EvalTransform, FinetuneTransform, PretrainTransform, erase, normalize

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
    "training_loader",
]
