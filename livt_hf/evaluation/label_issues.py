"""Training images whose label a model doubts: confident learning on out-of-fold probabilities of a linear probe.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70, 2021, pages
1373-1411, arXiv 1911.00068):

- the threshold t_j of class j is the mean probability p(j | x) of the images labeled j;
- the confident joint C_ij counts the images labeled i whose most probable class among those with
  p(j | x) >= t_j is j. Images off its diagonal have label issues, most likely of class j;
- they are ranked by the normalized margin p(i | x) - max_{j != i} p(j | x), the smallest first.

As the thresholds are per class, rare classes, of which a model is less confident, are judged by their own measure. As
in cleanlab, an image that the model itself puts into its labeled class is not listed. Unlike here, cleanlab 2.9 takes
the most probable of all classes where several reach their thresholds.

Legend: N images, C classes, D width, F folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..reporting.blocks import counted
from .probe import choose_l2, fit_probe

logger = logging.getLogger(__name__)
IMAGES_AT_ONCE = 4096  # rows of probabilities in memory
ROUNDING = 1e-6  # of a probability that equals its threshold; cleanlab's tolerance
Probabilities = Callable[[np.ndarray], np.ndarray]  # rows (n,) -> probabilities (n, C)


@dataclass(frozen=True)
class LabelIssues:
    """Images whose label is doubted, the smallest normalized margin first.

    Attributes:
        rows: of the images, int64 (M,).
        labels, suggested: given and most likely classes, int64 (M,).
        probabilities, suggested_probabilities: of these two classes, float32 (M,).
        margins: normalized margins, float32 (M,); not above 0.
        joint: confident joint, int64 (C, C), given label by likely class.
        agreed: images of each class that the model puts into it, int64 (C,).
        unjudged: classes of a single image, which no model judges that has not seen it, int64.
    """

    rows: np.ndarray
    labels: np.ndarray
    suggested: np.ndarray
    probabilities: np.ndarray
    suggested_probabilities: np.ndarray
    margins: np.ndarray
    joint: np.ndarray
    agreed: np.ndarray
    unjudged: np.ndarray


def find_label_issues(
    features: np.ndarray,
    labels: np.ndarray,
    class_counts: Mapping[str, int],
    *,
    folds: int = 5,
    seed: int = 0,
    device: str | None = None,
) -> LabelIssues:
    """Doubted labels among the training images of all classes.

    Args:
        features: float32 (N, D), from `split_features`.
        labels: int64 (N,).
        class_counts: ``{name: images}``, in label order.
        folds: number of parts; each image is judged by a probe that is fitted without its part.

    Raises:
        ValueError: fewer than 2 folds, or more than images in the largest class.
    """
    probes, fold_of = fit_out_of_fold(features, labels, class_counts, folds, seed, device)

    def probabilities(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), len(class_counts)), dtype=np.float32)
        for fold, probe in enumerate(probes):
            mine = fold_of[rows] == fold
            with torch.no_grad():
                found[mine] = probe(torch.from_numpy(features[rows[mine]])).softmax(dim=1).numpy()
        return found

    return judge_labels(labels, probabilities, len(class_counts))


def judge_labels(labels: np.ndarray, probabilities: Probabilities | np.ndarray, num_classes: int) -> LabelIssues:
    """Confident learning, from labels, int64 (N,), and out-of-fold probabilities (N, C).

    The probabilities may be a function that computes those of some rows, where all do not fit into memory. Images of
    classes with a single image are not judged, and no image is suggested to belong to such a class.
    """
    compute = probabilities if callable(probabilities) else probabilities.__getitem__
    counts = np.bincount(labels, minlength=num_classes)
    unjudged = np.flatnonzero(counts == 1)
    judged = np.flatnonzero(~np.isin(labels, unjudged))
    parts = [judged[start : start + IMAGES_AT_ONCE] for start in range(0, len(judged), IMAGES_AT_ONCE)]
    confidence = [compute(rows)[np.arange(len(rows)), labels[rows]] for rows in parts]
    thresholds = confident_thresholds(labels[judged], np.concatenate(confidence or [np.zeros(0)]), num_classes)
    joint, found = np.zeros((num_classes, num_classes), dtype=np.int64), []
    agreed = np.zeros(num_classes, dtype=np.int64)
    for rows in parts:
        values = compute(rows)
        agreed += np.bincount(labels[rows][values.argmax(axis=1) == labels[rows]], minlength=num_classes)
        found.append(_judge(rows, labels[rows], values, thresholds, joint))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.zeros(0, int)] * 6
    order = np.argsort(columns[-1], kind="stable")
    rows, labels, suggested, own, other, margins = (column[order] for column in columns)
    return LabelIssues(rows, labels, suggested, own, other, margins, joint, agreed, unjudged)


def confident_thresholds(labels: np.ndarray, confidence: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean probability of the labeled class over the images of each class, float64 (C,); infinite without images.

    Args:
        labels: int64 (N,).
        confidence: probability of each image's label, float (N,).
    """
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=confidence, minlength=num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.inf), where=counts > 0)


def _judge(
    rows: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, joint: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The columns of `LabelIssues` for some images, which are counted in ``joint``."""
    confident = probabilities >= thresholds - ROUNDING  # (n, C)
    likely = np.where(confident, probabilities, -1.0).argmax(axis=1)
    counted_in = confident.any(axis=1)
    np.add.at(joint, (labels[counted_in], likely[counted_in]), 1)
    at = np.arange(len(rows))
    own = probabilities[at, labels]
    others = probabilities.copy()
    others[at, labels] = -1.0
    margin = own - others.max(axis=1)
    doubted = counted_in & (likely != labels) & (probabilities.argmax(axis=1) != labels)
    columns = (rows, labels, likely, own, probabilities[at, likely], margin)
    return tuple(column[doubted] for column in columns)


def fit_out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    class_counts: Mapping[str, int],
    folds: int,
    seed: int,
    device: str | None = None,
) -> tuple[list[nn.Linear], np.ndarray]:
    """A balanced linear probe D -> C for each fold, fitted on the others, and the fold of each image, int64 (N,).

    A class that only the fold itself contains has no images to learn from: its logit is very low.
    """
    check_folds(folds, class_counts)
    fold_of = stratified_folds(labels, folds, seed)
    names = list(class_counts)
    losses = choose_l2(features, labels, class_counts, seed=seed, device=device)
    l2 = min(losses, key=losses.__getitem__)
    probes = []
    for fold in range(folds):
        rows = np.flatnonzero(fold_of != fold)
        present, local = np.unique(labels[rows], return_inverse=True)
        counts = {names[label]: int(count) for label, count in zip(present, np.bincount(local), strict=True)}
        probe = fit_probe(features[rows], local, counts, l2=l2, device=device)
        probes.append(_with_all_classes(probe, present, len(names)))
    return probes, fold_of


def check_folds(folds: int, class_counts: Mapping[str, int]) -> None:
    """ValueError unless the largest class has an image for each fold."""
    largest = max(class_counts.values())
    if not 2 <= folds <= largest:
        raise ValueError(
            f"folds: {folds} is out of range; it must be at least 2 and at most the size of the largest class, "
            f"{largest}"
        )


def _with_all_classes(probe: nn.Linear, present: Sequence[int] | np.ndarray, num_classes: int) -> nn.Linear:
    layer = nn.Linear(probe.in_features, num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-1e9)
        layer.weight[present] = probe.weight.cpu()
        layer.bias[present] = probe.bias.cpu()
    return layer


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each image, int64 (N,): the images of a class, and all images, spread evenly.

    A class with fewer images than folds has one in each of as many folds.
    """
    generator = np.random.default_rng(seed)
    fold_of, place = np.empty(len(labels), dtype=np.int64), 0
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        fold_of[rows] = (place + np.arange(len(rows))) % folds
        place += len(rows)
    return fold_of


def log_rare_classes(class_counts: Mapping[str, int], folds: int) -> None:
    """Say for which classes the judgment rests on little."""
    if single := sum(count == 1 for count in class_counts.values()):
        logger.info(f"{counted(single, 'class')} with a single image: not judged, as nothing else shows the class")
    if few := sum(1 < count < folds for count in class_counts.values()):
        logger.info(f"{counted(few, 'class')} with fewer images than folds: each image is judged by the others")
