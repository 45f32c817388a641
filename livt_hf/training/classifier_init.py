"""The classifier that fine-tuning starts from: as it is, zero, the mean features of the classes (class means), or text.

Class means follow LIFT (Shi et al., ICML 2024, arXiv 2309.10019; shijxcs/LIFT, `init_head_class_mean` in trainer.py):
the row of a class is the L2-normalized mean of the features of its training images. LIFT's classifier is a cosine one
of scale 25; here it stays a linear layer, so that the model is native. Hence the mean over classes is subtracted from
the rows, which changes no softmax but lets the logits of an image have the mean 0, as binary losses need it, and they
are scaled to the spread `SPREAD`. As in LIFT there is no bias.

Legend: N images, D width, C classes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..config.arguments import FinetuneArguments
from ..data.long_tail import balanced_indices, dataset_labels
from ..evaluation.features import split_features
from ..metrics import long_tail_accuracy
from ..models.configuration_livt import ordered_class_counts
from ..models.features import set_classifier
from ..models.loading import classifier_layers
from ..reporting.blocks import accuracy_words
from .data import LoadedImages
from .frozen import frozen_precision, local_device
from .text_classifier import init_from_text

logger = logging.getLogger(__name__)
# LIFT's "100_shot" start: the mean of 100 images is off by a tenth of the standard deviation within the class.
IMAGES_PER_CLASS = 100
# Mean over images of the standard deviation of their logits over classes. Negative log-likelihood of 1,000 held-out
# training images of CIFAR-10, with class means of long-tailed images in the features of a small masked autoencoder:
# 2.14 at 0.25, 2.05 at 0.5, 1.99 at 1, 2.02 at 1.5, 2.10 at 2, 2.34 at 3. Centered features were worse (macro accuracy
# 23.0 %, not 29.7 %), so there is no bias.
SPREAD = 1.5


def init_classifier(args: FinetuneArguments, model: PreTrainedModel, images: LoadedImages, processor: Any) -> None:
    """Set the classifier of a model as ``--classifier_init`` says, and log the accuracy that it starts with.

    Every process computes the same, from the same images; DDP then sends everyone the weights of the first.

    Args:
        processor: with the evaluation transform.

    Raises:
        ValueError: class means of a stream, or of images that cannot be read.
    """
    if args.classifier_init == "random":
        return
    if args.classifier_init == "zero":
        zero_classifier(model)
        return
    if args.classifier_init == "text":
        init_from_text(args, model, images, processor)
        return
    if args.streaming:
        raise ValueError("classifier_init: class_mean reads images of every class first; leave out --streaming")
    train = images.splits["train"]
    chosen = train.select(np.sort(balanced_indices(dataset_labels(train), IMAGES_PER_CLASS, args.seed)))
    options: dict[str, Any] = {
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "device": local_device(),
    }
    with frozen_precision(args.mixed_precision):
        features = split_features(model, chosen, processor, max_bad_images=args.max_bad_images, **options)
        readable, labels = np.isfinite(features[:, 0]), dataset_labels(chosen)
        layer = class_mean_layer(features[readable], labels[readable], len(images.class_counts))
        which = "the images that it is made of"
        if "validation" in images.splits:
            validation, which = images.splits["validation"], "the validation split"
            features, labels = split_features(model, validation, processor, **options), dataset_labels(validation)
            readable = np.ones(len(labels), dtype=bool)
    set_classifier(model, layer.to(model.device))
    model.to("cpu")  # type: ignore[arg-type]  # Trainer places it, perhaps in shards
    with torch.no_grad():
        predictions = layer.cpu()(torch.from_numpy(features[readable])).argmax(dim=1).numpy()
    groups = getattr(model.config, "shot_groups", None)
    accuracy = long_tail_accuracy(labels[readable], predictions, ordered_class_counts(model.config), groups)
    logger.info(f"accuracy of class means, before training, on {which}: {accuracy_words(accuracy)}")


@torch.no_grad()
def zero_classifier(model: PreTrainedModel) -> None:
    """Set the weights and biases of all `classifier_layers` to 0."""
    for layer in classifier_layers(model).values():
        for parameter in layer.parameters():
            parameter.zero_()


def class_mean_layer(features: np.ndarray, labels: np.ndarray, num_classes: int, spread: float = SPREAD) -> nn.Linear:
    """A linear layer D -> C of class means, whose logits have the mean 0 over classes; its bias is 0.

    Args:
        features: float32 (N, D), of all classes.
        labels: int64 (N,).
        spread: mean over the images of the standard deviation of the logits over classes.

    Raises:
        ValueError: a class without features.
    """
    x = torch.from_numpy(features).double()
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(
            f"classifier_init: class {int(np.argmin(counts))} has no readable training image; use another start"
        )
    sums = torch.zeros(num_classes, x.shape[1], dtype=x.dtype).index_add_(0, torch.from_numpy(labels), x)
    means = sums / torch.from_numpy(counts)[:, None]  # (C, D)
    weight = F.normalize(means, dim=1)
    weight = weight - weight.mean(dim=0)
    found = (x @ weight.T).std(dim=1, unbiased=False).mean()  # of logits (N, C)
    weight *= spread / found if found > 0 else 0.0
    layer = nn.Linear(x.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    return layer
