"""``--classifier_init text``: start from the zero-shot classifier of a model of images and texts (`models.zero_shot`).

Zero-shot, the model classifies by its own image embedding; the native classifier gets weights that imitate it from the
mean of the patch tokens. The log has the accuracy of both, so that one sees how much of it survives.

Legend: B batch, N images, D width of the classifier's features, E width of the embeddings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import data
from ..config.arguments import FinetuneArguments
from ..data import ImageDataset, evaluation_loader
from ..data.long_tail import balanced_indices, dataset_labels
from ..evaluation.predictions import ProcessorTransform, batch_outputs, mean_and_std
from ..metrics import long_tail_accuracy
from ..models.features import pooled_features, set_classifier
from ..models.zero_shot import ZeroShot, load_zero_shot, text_classifier
from ..reporting.blocks import accuracy_words, counted
from .data import LoadedImages
from .frozen import local_device

logger = logging.getLogger(__name__)

# For the regression: more change little, and 50 of each of 1,000 classes are one pass over 50,000 images
IMAGES_PER_CLASS = 50


def init_from_text(
    args: FinetuneArguments,
    model: PreTrainedModel,
    images: LoadedImages,
    processor: Any,
) -> dict[str, dict[str, Any]]:
    """Give a classifier the weights of `text_classifier`, and log the zero-shot accuracy and its own.

    They are measured on the validation split, else the test split, else the training images of the regression, which
    are at most `IMAGES_PER_CLASS` of each class. Images are those of the evaluation transform.

    Args:
        model: a CLIP or SigLIP classifier on ``args.pretrained``.
        processor: image processor with the evaluation transform.

    Returns:
        ``{"zero-shot", "initialized"}``: results of `long_tail_accuracy`.

    Raises:
        ValueError: the checkpoint has no text tower or tokenizer, the classes no names, or the dataset is streamed.
    """
    splits, class_counts = images.splits, images.class_counts
    if "train" not in splits:
        raise ValueError("classifier_init: text reads the training images before training; leave out --streaming")
    names = list(class_counts)
    zero_shot = load_zero_shot(args.pretrained, names, args.prompt)
    encoder = _Encoder(args, model, zero_shot, processor)
    chosen = np.sort(balanced_indices(dataset_labels(splits["train"]), IMAGES_PER_CLASS, args.seed)).tolist()
    features, embeddings, train_labels = encoder(splits["train"], chosen, "classifier_init")
    weight, bias, fit = text_classifier(features, embeddings, zero_shot.text, zero_shot.scale)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    set_classifier(model, layer)
    logger.info(
        f"classifier_init: text, {counted(len(args.prompt), 'prompt')}; the classifier's features of "
        f"{counted(len(chosen), 'training image')} explain {100 * fit['r2']:.1f} % of the variance of the zero-shot "
        f"embeddings (ridge strength {fit['strength']:.0e} by generalized cross-validation)"
    )
    split = next((name for name in ("validation", "test") if name in splits), "train")
    where, labels = f"{split} split", train_labels
    if split == "train":
        where = "images of the regression, in the training split"
    else:
        features, embeddings, found = encoder(splits[split], range(len(splits[split])), "zero-shot")
        labels = data.match_labels(splits[split].features["label"].names, names, "the dataset")[found]
    results = {}
    for what, logits in (
        ("zero-shot", zero_shot.logits(embeddings)),
        ("initialized", features @ weight.T + bias),
    ):
        results[what] = long_tail_accuracy(labels, logits.argmax(1).numpy(), class_counts, args.shot_groups())
        subject = "zero-shot accuracy" if what == "zero-shot" else "accuracy of the classifier initialized from it"
        logger.info(f"{subject}, before training, on the {where}: {accuracy_words(results[what])}")
    return results


class _Encoder:
    """Features for the classifier and zero-shot embeddings of images, in one pass."""

    def __init__(self, args: FinetuneArguments, model: PreTrainedModel, zero_shot: ZeroShot, processor: Any):
        self.args, self.model, self.zero_shot, self.processor = args, model, zero_shot, processor
        self.device = local_device()

    def __call__(self, split: Dataset, indices: Sequence[int], description: str) -> tuple[Tensor, Tensor, np.ndarray]:
        """Features (N, D) and embeddings (N, E), float32 on the CPU, and labels, int64 (N,)."""
        transform = ProcessorTransform(self.processor)
        images = ImageDataset(split, transform, seed=self.args.seed, max_bad_images=self.args.max_bad_images)
        # As in training (a key with an epoch), an unreadable image is replaced by another
        keyed = Subset(images, [(0, index) for index in indices])  # type: ignore[misc]
        loader = evaluation_loader(keyed, self.args.batch_size, self.args.num_workers)
        batches = tqdm(loader, desc=description, unit="batch", disable=None)
        was_training, home = self.model.training, self.model.device
        for module in (self.model.eval(), self.zero_shot.model):
            module.to(self.device)
        try:
            statistics = mean_and_std(self.processor)
            outputs, labels = zip(*batch_outputs(self._forward, batches, *statistics, self.device), strict=True)
        finally:
            self.model.to(home).train(was_training)  # type: ignore[arg-type]
        joined = torch.cat([output.cpu() for output in outputs])  # (N, D + E)
        width = joined.shape[1] - self.zero_shot.text.shape[1]
        return joined[:, :width], joined[:, width:], torch.cat(labels).numpy()

    def _forward(self, pixel_values: Tensor) -> Tensor:
        """Features and embeddings side by side (B, D + E)."""
        return torch.cat([pooled_features(self.model, pixel_values), self.zero_shot.embed(pixel_values)], dim=1)
