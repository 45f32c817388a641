"""k-NN probe: how well the features of an encoder separate classes, without training on them.

Weighted k-nearest-neighbor voting on cosine similarity as in Wu et al., "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination" (CVPR 2018), with k = 20 and temperature 0.07 of DINO (Caron et al., ICCV 2021,
appendix). It indicates feature quality during masked pretraining and does not replace fine-tuning, which is known to be
far better than frozen features of a masked autoencoder.

Legend: N images in the bank, Q queries, D width, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from ..data import ImageDataset, evaluation_loader
from ..metrics import long_tail_accuracy
from ..models.modeling_livt_mae import LivtMAEForPreTraining
from .predictions import batch_outputs

Watch = Callable[[Iterable[Any]], Iterable[Any]]  # passes the batches on, and may stop between two of them

NEIGHBORS, TEMPERATURE = 20, 0.07
QUERIES_AT_ONCE = 256  # rows of the similarity matrix in memory


def knn_accuracy(
    accelerator: Accelerator,
    model: LivtMAEForPreTraining,
    train: ImageDataset,
    validation: ImageDataset | None,
    class_counts: Mapping[str, int],
    groups: Mapping[str, Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    num_workers: int,
    watch: Watch = iter,
) -> dict[str, float]:
    """Accuracy of a k-NN classifier on the encoder's features, in percent: overall and of each shot group.

    The training images vote on the validation images; without these, each training image is classified by the others.
    The images are distributed over the processes, all of which must call this function.

    Args:
        train, validation: datasets with an `EvalTransform`.
        class_counts: training images of each class, by name, in label order.
        groups: definition of the shot groups, see `ClassPrior.groups`.
        mean, std: of the pixels in 0..1, per channel.
        watch: gets the batches, and may stop the probe with an exception.

    Returns:
        ``probe_accuracy``, ``probe_many``, ``probe_medium``, ``probe_few``; a group without test images is left out.
    """
    encode_images = functools.partial(
        encode, accelerator, model, mean=mean, std=std, batch_size=batch_size, num_workers=num_workers, watch=watch
    )
    bank, bank_labels = encode_images(train)
    queries, labels = (bank, bank_labels) if validation is None else encode_images(validation)
    leave_one_out = validation is None
    predictions = knn_predictions(
        bank, bank_labels, queries, len(class_counts), leave_one_out=leave_one_out, watch=watch
    )
    accuracy = long_tail_accuracy(labels.cpu().numpy(), predictions.cpu().numpy(), class_counts, groups)
    measures = ("accuracy", "many", "medium", "few")
    return {f"probe_{name}": round(accuracy[name], 3) for name in measures if accuracy[name] is not None}


def encode(
    accelerator: Accelerator,
    model: LivtMAEForPreTraining,
    images: ImageDataset,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    num_workers: int,
    watch: Watch = iter,
) -> tuple[Tensor, Tensor]:
    """Features, float32 (N, D), and labels, int64 (N,), of all images, on the device of every process.

    Arguments as in `knn_accuracy`.
    """
    number = math.ceil(len(images) / accelerator.num_processes)
    start = accelerator.process_index * number
    # Every process encodes equally many images, padded with the last one. The keys contain an epoch, as in training, so
    # that an unreadable image is replaced instead of ending the run.
    keys = [(0, min(index, len(images) - 1)) for index in range(start, start + number)]
    mine = Subset(images, keys)  # type: ignore[arg-type]

    def forward(pixel_values: Tensor) -> Tensor:
        with accelerator.autocast():
            return model.features(pixel_values)

    loader = watch(evaluation_loader(mine, batch_size, num_workers))
    features, labels = zip(*batch_outputs(forward, loader, mean, std, accelerator.device), strict=True)
    gathered = accelerator.gather((torch.cat(features), torch.cat(labels).to(accelerator.device)))
    return gathered[0][: len(images)], gathered[1][: len(images)]


def knn_predictions(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    neighbors: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
    watch: Watch = iter,
) -> Tensor:
    """Predicted class of each query, int64 (Q,).

    Each of the nearest images in the bank votes for its class with weight exp(cosine similarity / temperature).

    Args:
        bank: features (N, D).
        bank_labels: their classes, int64 (N,).
        queries: features (Q, D).
        neighbors: number of votes per query.
        leave_one_out: the queries are the bank itself, and no image votes on itself.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    neighbors = min(neighbors, len(bank) - leave_one_out)
    predictions = []
    for start in watch(range(0, len(queries), QUERIES_AT_ONCE)):
        similarity = queries[start : start + QUERIES_AT_ONCE] @ bank.T  # (q, N)
        if leave_one_out:
            similarity.diagonal(offset=start).fill_(-math.inf)
        nearest, indices = similarity.topk(neighbors, dim=1)  # (q, k)
        votes = torch.zeros(len(similarity), num_classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[indices], (nearest / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)
