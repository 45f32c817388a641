"""Confidence intervals of accuracies and of the ECE over test images, for one model and for the difference of two.

The bootstrap is stratified: of each class with n test images, n are drawn with replacement, since group accuracies are
means over classes whose sizes are fixed. A statistic is then T(m), with m (N,) how often each image was drawn.

Small strata. Within a class of n images, drawing n of n gives (n - 1) / n of the variance of an unbiased estimate; with
the 3 test images per class of iNaturalist the interval would be 18 % too narrow. So deviations of a class are enlarged
by sqrt(n / (n - 1)) (Rao and Wu, "Resampling inference with complex survey data", JASA 1988, with resamples of n).
Classes with one image say nothing about their spread: those of a shot group are drawn from together (collapsed strata).

Accuracies: percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), within 0
to 100 %. Where each class is all right or all wrong, as of a model that always predicts the same class, all resamples
are equal: then the interval of Clopper and Pearson (Biometrika 1934) for n images, with n the effective number of
images of a weighted mean, (sum w) ** 2 / sum w ** 2 (Kish, "Survey Sampling", 1965).

ECE: it is a sum of absolute values, so noise in the bins only increases it; the ECE of a resample has that noise twice,
and the percentile interval is too high (of a perfectly calibrated model it never contains 0). The basic interval [2 T -
q_high, 2 T - q_low] (same book, section 13.4) reflects the resamples at the estimate T and so takes the excess off; it
is widened to contain T, as a reader expects. Its low end is 0 if T is no larger than the noise alone, sum_b |gap*_b -
gap_b|, is in 97.5 % of the resamples: such a T is what perfect calibration shows. In simulations, with 150 to 10,000
images, it contained the true ECE in 82 to 99 % of test sets (at the low end where some bins are calibrated and others
are not; 56 to 62 % for perfect calibration without that rule).

Legend: N images, C classes, K statistics, M models, R resamples, E bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..prior import ClassPrior, group_definition
from .accuracy import as_labels, check_range, check_same_length

LEVEL = 95.0  # percent
RESAMPLES = 1000
SEED = 0
MEASURES = ("accuracy", "macro_accuracy", "many", "medium", "few", "ece")
NOISE = len(MEASURES)  # place of the noise of the ECE after them
# With fewer images answered differently no two-sided sign test is significant: 2 * 0.5 ** 6 < 0.05 < 2 * 0.5 ** 5
FEWEST_DIFFERENT = 6
_CHUNK = 2**21  # drawn images kept at a time
_TAILS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)  # percentiles

Interval = list[float]  # low, high; in percent


def bootstrap_intervals(
    labels: Any,
    predictions: Any,
    confidences: Any,
    class_counts: Mapping[str, int] | Sequence[int],
    groups: Mapping[str, Any] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """95 % confidence intervals over test images: the entry ``intervals`` of results.json.

    Args:
        labels, predictions: true and predicted class of each image, integers of shape (N,).
        confidences: probability of the predicted class, 0 to 1, shape (N,).
        class_counts, groups: as in `long_tail_accuracy`.

    Returns:
        ``{measure: [low, high]}`` in percent for `MEASURES`, None for a group without test images; ``method``: level,
        resamples, seed, and under ``exact`` the measures whose interval is Clopper's and Pearson's.

    Raises:
        ValueError: no images, different lengths, or a label or prediction out of range.
    """
    images = _Images(labels, class_counts, groups)
    model = images.model(predictions, confidences)
    point, drawn = images.statistics([model]), images.resampled([model], resamples, seed)
    intervals: dict[str, Any] = {}
    exact = []
    for place, measure in enumerate(MEASURES):
        weights = images.weights.get(measure)
        if measure == "ece":
            intervals[measure] = _basic(point[0, place], drawn[:, 0, place])
            if point[0, place] <= np.percentile(drawn[:, 0, NOISE], _TAILS[1]):
                intervals[measure][0] = 0.0
        elif weights is None:
            intervals[measure] = None
        elif np.ptp(drawn[:, 0, place]) < 1e-9:
            intervals[measure] = _clopper_pearson(point[0, place] / 100, 1 / float((weights**2).sum()))
            exact.append(measure)
        else:
            intervals[measure] = _clipped(np.percentile(drawn[:, 0, place], _TAILS), 0.0)
    method = {"level": LEVEL, "resamples": resamples, "seed": seed, "stratified_by": "class", "exact": exact}
    return {**intervals, "method": method}


def paired_differences(
    labels: Any,
    models: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    class_counts: Mapping[str, int] | Sequence[int],
    groups: Mapping[str, Any] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, dict[str, Any] | None]:
    """Differences of the mean over some models to the mean over others, with paired 95 % intervals.

    Every resample draws the same images for all models, so that images which are hard for all of them add no noise.
    Models are fixed: a difference beyond its interval is one of these models on other test images, not of others
    trained with further seeds.

    Args:
        labels: true class of each image, integers of shape (N,), the same images for all models.
        models, baseline: of each model, such as one per seed, ``predictions`` and ``confidences``, (N,) each.
        class_counts, groups: as in `long_tail_accuracy`.

    Returns:
        ``{measure: {"difference", "interval": [low, high], "significant"}}`` for `MEASURES`, in points; None for a
        group without test images. Significant: 0 is outside the interval and, for an accuracy, at least
        `FEWEST_DIFFERENT` of its images are answered differently.

    Raises:
        ValueError: as `bootstrap_intervals`.
    """
    images = _Images(labels, class_counts, groups)
    both = [images.model(of["predictions"], of["confidences"]) for of in (*models, *baseline)]
    share = np.repeat([1 / len(models), -1 / len(baseline)], [len(models), len(baseline)])  # (M,)
    # Rounded, so that equal models differ by 0 and not by an error of rounding
    point = np.round(share @ images.statistics(both), 9)  # (K + 1,)
    drawn = np.round(np.einsum("m,rmk->rk", share, images.resampled(both, resamples, seed)), 9)
    differs = np.abs(share @ np.stack([correct for correct, _, _ in both])) > 1e-9  # (N,)
    found: dict[str, dict[str, Any] | None] = {}
    for place, measure in enumerate(MEASURES):
        weights = images.weights.get(measure)
        if measure == "ece":
            interval, enough = _basic(point[place], drawn[:, place], lowest=-100.0), True
        elif weights is None:
            found[measure] = None
            continue
        else:
            interval = _clipped(np.percentile(drawn[:, place], _TAILS), -100.0)
            enough = int((differs & (weights > 0)).sum()) >= FEWEST_DIFFERENT
        significant = bool(enough and not interval[0] <= 0 <= interval[1])
        found[measure] = {"difference": float(point[place]), "interval": interval, "significant": significant}
    return found


Model = tuple[np.ndarray, np.ndarray, np.ndarray]  # correct (N,) float, gap (N,), bin (N,)


class _Images:
    """The images of a test set: strata, weights of each measure, and resamples.

    Attributes:
        weights: ``{measure: (N,)}``, sums 1, for the accuracies that can be measured: the measure is ``w @ correct``.
    """

    def __init__(self, labels: Any, class_counts: Any, groups: Mapping[str, Any] | None):
        prior = ClassPrior(class_counts)
        self.labels = as_labels("labels", labels)
        check_range("labels", self.labels, len(prior))
        self.num_classes = len(prior)
        sizes = np.bincount(self.labels, minlength=len(prior))  # (C,)
        members = prior.groups(**group_definition(groups))
        self.weights = {"accuracy": np.full(len(self.labels), 1 / len(self.labels))}
        for measure, classes in {"macro_accuracy": np.arange(len(prior)), **members}.items():
            tested = np.zeros(len(prior), dtype=bool)
            tested[classes] = sizes[classes] > 0
            if tested.any():
                weights = np.where(tested, 1 / np.maximum(sizes, 1), 0) / tested.sum()  # (C,)
                self.weights[measure] = weights[self.labels]
        self._set_strata(members, sizes)

    def _set_strata(self, members: Mapping[str, np.ndarray], sizes: np.ndarray) -> None:
        """Order of the images by stratum, first place and size of each image's stratum, scale of deviations."""
        stratum_of = np.arange(self.num_classes)  # (C,)
        for number, classes in enumerate(members.values()):
            stratum_of[classes[sizes[classes] == 1]] = self.num_classes + number
        strata = stratum_of[self.labels]
        self.order = np.argsort(strata, kind="stable")  # (N,) images, stratum after stratum
        size = np.bincount(strata)[strata[self.order]]  # (N,) of the stratum of each place
        self.size = size
        self.first = np.searchsorted(strata[self.order], strata[self.order])  # (N,)
        scale = np.ones(len(strata))
        scale[self.order] = np.sqrt(size / np.maximum(size - 1, 1))
        self.scale = scale

    def model(self, predictions: Any, confidences: Any, num_bins: int = 15) -> Model:
        """What the statistics of a model need: is it right, by how much less than its confidence, in which bin."""
        predictions = as_labels("predictions", predictions)
        confidences = np.asarray(confidences, dtype=np.float64)
        check_same_length(labels=self.labels, predictions=predictions, confidences=confidences)
        check_range("predictions", predictions, self.num_classes)
        correct = (predictions == self.labels).astype(np.float64)
        edges = np.linspace(0.0, 1.0, num_bins + 1)  # as in `reliability_bins`
        bins = np.clip(np.digitize(confidences, edges, right=True) - 1, 0, num_bins - 1)
        return correct, correct - confidences, bins

    def statistics(self, models: Sequence[Model]) -> np.ndarray:
        """`MEASURES` of each model, and 0, (M, K + 1), in percent; nan where a group has no images."""
        drawn = np.ones((1, len(self.labels)))
        return np.stack([self._of_drawn(drawn, model) for model in models], axis=1)[0]

    def resampled(self, models: Sequence[Model], resamples: int, seed: int) -> np.ndarray:
        """`MEASURES` and the ECE's noise of each resample and model, (R, M, K + 1), in percent."""
        parts = [
            np.stack([self._of_drawn(drawn, model) for model in models], axis=1)
            for drawn in self._draw(resamples, np.random.default_rng(seed))
        ]
        return np.concatenate(parts)

    def _draw(self, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """How often each image was drawn, (r, N) in chunks of r resamples, deviations from 1 enlarged."""
        images = len(self.labels)
        step = max(1, _CHUNK // images)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            places = self.first + (rng.random((rows, images)) * self.size).astype(np.int64)  # (r, N)
            offsets = images * np.arange(rows)[:, None]
            drawn = np.bincount((self.order[places] + offsets).ravel(), minlength=rows * images).reshape(rows, images)
            yield 1 + (drawn - 1) * self.scale

    def _of_drawn(self, drawn: np.ndarray, model: Model) -> np.ndarray:
        """`MEASURES` and the ECE's noise, (r, K + 1), of images drawn (r, N) times; linear but for absolute values."""
        correct, gap, bins = model
        images, num_bins = len(correct), int(bins.max()) + 1
        absent = np.full(images, np.nan)
        of_image = [self.weights.get(measure, absent) * correct for measure in MEASURES if measure != "ece"]
        in_bins = np.zeros((images, num_bins))
        in_bins[np.arange(images), bins] = gap / images
        values = drawn @ np.column_stack([*of_image, in_bins])  # (r, K - 1 + E)
        accuracies, gaps = values[:, : len(of_image)], values[:, len(of_image) :]
        noise = np.abs(gaps - in_bins.sum(axis=0)).sum(axis=1)
        return 100 * np.column_stack([accuracies, np.abs(gaps).sum(axis=1), noise])


def _basic(point: float, drawn: np.ndarray, lowest: float = 0.0) -> Interval:
    """The basic interval, widened to contain the estimate."""
    low, high = np.percentile(drawn, _TAILS)
    return _clipped((min(2 * point - high, point), max(2 * point - low, point)), lowest)


def _clipped(ends: Any, lowest: float) -> Interval:
    return [float(end) for end in np.clip(ends, lowest, 100.0)]


def _clopper_pearson(share: float, images: float) -> Interval:
    """Where a share of some number of images, which need not be whole, is right."""
    from scipy.stats import beta  # takes a second to import, and is seldom needed

    right, wrong = share * images, (1 - share) * images
    low = beta.ppf(_TAILS[0] / 100, right, wrong + 1) if right > 1e-9 else 0.0
    high = beta.ppf(_TAILS[1] / 100, right + 1, wrong) if wrong > 1e-9 else 1.0
    return [100 * float(low), 100 * float(high)]
