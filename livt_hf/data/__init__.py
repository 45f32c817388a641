"""In: the name of a benchmark, a path or a Hub id.

Out: long-tailed splits, and batches of augmented images in a reproducible order.
"""

from ..class_names import match_labels
from .dataset import ImageDataset
from .decoding import BadImageError, decode_image
from .load import load_long_tailed
from .loader import TrainingBatches, evaluation_loader, training_loader
from .long_tail import class_counts, long_tailed_indices
from .mixup import Mixup
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
