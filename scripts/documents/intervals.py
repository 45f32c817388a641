"""95 % intervals of means and differences over runs: seeds of fine-tuning, nested in masked autoencoders.

Runs of one autoencoder are not independent of it: the mean is that of the autoencoders' means, and its standard error
the larger of two, that between autoencoders (A - 1 degrees of freedom) and that between seeds within them (N - A). This
is the analysis of variance of a nested design, whose mean has the variance of autoencoders' means, with autoencoders
left out where they vary no more than their seeds let expect (Searle, Casella and McCulloch, "Variance Components",
1992, chapter 3). Of one autoencoder, the interval says nothing about others.

The test images are a sample, too, and the same one in every run, so their variance does not shrink with more runs. Its
half-width is added in quadrature: that of a run's bootstrap interval, or where a record has none, the binomial one of
Agresti and Coull (The American Statistician 1998), which is an upper bound for classes of different accuracy. The two
sides of a difference are taken as tested on different images, which makes it too wide rather than too narrow.

Legend: A autoencoders, N runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

FEWEST_RUNS = 3  # that have an interval
NORMAL = 1.959964  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean or difference, in percent or points.

    Attributes:
        half: half the width of its 95 % interval, None with fewer than `FEWEST_RUNS` runs.
        runs: N; of a difference between two sets of runs, of the smaller one.
    """

    value: float
    half: float | None
    runs: int

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.half is None else (self.value - self.half, self.value + self.half)

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes 0; otherwise 0."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def nested_mean(values: Mapping[str, Sequence[float]]) -> tuple[float, float | None, int]:
    """Mean, its standard error (None if it cannot be estimated) and degrees of freedom.

    Args:
        values: autoencoder -> one value per seed.
    """
    groups = [list(members) for members in values.values()]
    means = [statistics.fmean(members) for members in groups]
    mean, runs, count = statistics.fmean(means), sum(map(len, groups)), len(groups)
    if runs < FEWEST_RUNS:
        return mean, None, 0
    errors = []
    if runs > count:
        squares = sum((value - middle) ** 2 for members, middle in zip(groups, means, strict=True) for value in members)
        variance = squares / (runs - count)
        errors.append((math.sqrt(variance * sum(1 / len(members) for members in groups)) / count, runs - count))
    if count > 1:
        errors.append((statistics.stdev(means) / math.sqrt(count), count - 1))
    error, freedom = max(errors)
    return mean, error, freedom


def estimate(values: Mapping[str, Sequence[float]], test_half: float | None = 0.0) -> Estimate:
    """Of a mean over runs, or of paired differences of runs.

    Args:
        values: as in `nested_mean`.
        test_half: half-width from the sampling of the test images; None if not known, which leaves no interval.
    """
    mean, error, freedom = nested_mean(values)
    return Estimate(mean, _half(error, freedom, test_half), sum(map(len, values.values())))


def unpaired_difference(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], test_half: float | None = 0.0
) -> Estimate:
    """Difference between the means of two independent sets of runs (Welch, Biometrika 1947)."""
    (one, error, freedom), (other, other_error, other_freedom) = nested_mean(first), nested_mean(second)
    runs = min(sum(map(len, first.values())), sum(map(len, second.values())))
    if error is None or other_error is None:
        return Estimate(one - other, None, runs)
    variance = error**2 + other_error**2
    both = error**4 / freedom + other_error**4 / other_freedom
    return Estimate(one - other, _half(math.sqrt(variance), variance**2 / both if both else 1, test_half), runs)


def binomial_half(percentage: float, images: int) -> float:
    """Half-width of the interval of Agresti and Coull, in points."""
    total = images + NORMAL**2
    share = (percentage / 100 * images + NORMAL**2 / 2) / total
    return 100 * NORMAL * math.sqrt(share * (1 - share) / total)


def _half(error: float | None, freedom: float, test_half: float | None) -> float | None:
    if error is None or test_half is None:
        return None
    return math.hypot(float(stats.t.ppf(0.975, freedom)) * error, test_half)
