"""Class prior, logit biases and shot groups, from the class counts of a training set.

LiVT (Xu et al., CVPR 2023), with n_i images in class i, N in all and pi_i = n_i / N:
    Theorem 1   B_ce  = log pi_i                    bias of the balanced softmax cross-entropy
    Theorem 2   B_bce = log pi_i - log(1 - pi_i)    bias of the balanced binary cross-entropy
Groups: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (CVPR 2019): many-shot classes have more
than 100 training images, few-shot ones fewer than 20, medium-shot ones the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DEFAULT_SHOT_GROUPS: dict[str, Any] = {"many": 100, "few": 20, "by": "count"}  # by: "count" or "rank"
GROUP_NAMES = ("many", "medium", "few")


def group_definition(groups: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of `ClassPrior.groups`, with the defaults for those not given."""
    return {**DEFAULT_SHOT_GROUPS, **(groups or {})}


class ClassPrior:
    """The class distribution of a training set.

    Args:
        class_counts: number of training images of each class, as ``{name: count}`` or as a sequence in which integer
            label ``i`` is the i-th entry (its name is then ``str(i)``). The order is label order.

    Attributes (all in label order, length C):
        names: tuple of str.
        counts: int64 array.
        pi: float64 array, ``counts / counts.sum()``.
        log_prior: float64 array, ``log pi`` (Theorem 1).
        log_odds: float64 array, ``log pi - log(1 - pi)`` (Theorem 2).

    Raises:
        ValueError: fewer than two classes, or a count that is not a positive integer (the class is named).
    """

    def __init__(self, class_counts: Mapping[str, int] | Sequence[int]):
        if class_counts is None or isinstance(class_counts, str):
            raise ValueError(f"class_counts: {class_counts!r} is not {{name: count}} or a list of counts; give one")
        if not isinstance(class_counts, Mapping):
            class_counts = {str(label): count for label, count in enumerate(class_counts)}
        if len(class_counts) < 2:
            raise ValueError(f"class_counts: a class prior needs at least 2 classes, got {list(class_counts)}")
        for name, count in class_counts.items():
            if not _is_positive_integer(count):
                raise ValueError(
                    f"class_counts: class {name!r} has count {count!r}; every class needs at least one training image "
                    "(leave the class out, or give it images)"
                )
        self.names: tuple[str, ...] = tuple(str(name) for name in class_counts)
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"class_counts: class names must be unique, repeated: {repeated}")
        self.counts = np.array([int(count) for count in class_counts.values()], dtype=np.int64)
        total = self.counts.sum()
        self.pi = self.counts / total
        self.log_prior = np.log(self.pi)
        # log(1 - pi) from the complementary count is exact even if nearly all images are of one class.
        self.log_odds = self.log_prior - np.log((total - self.counts) / total)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def imbalance_factor(self) -> float:
        """Largest class count over the smallest."""
        return float(self.counts.max() / self.counts.min())

    def groups(
        self,
        many: int = DEFAULT_SHOT_GROUPS["many"],
        few: int = DEFAULT_SHOT_GROUPS["few"],
        by: str = DEFAULT_SHOT_GROUPS["by"],
    ) -> dict[str, np.ndarray]:
        """Labels of the many-, medium- and few-shot classes: ``{"many": int64 array, "medium": ..., "few": ...}``.

        Args:
            many, few: with ``by="count"``, many-shot classes have more than ``many`` training images and few-shot ones
                fewer than ``few``; with ``by="rank"``, they are the ``many`` largest and the ``few`` smallest classes
                (equal counts in label order).
            by: ``"count"`` or ``"rank"``.

        Returns:
            Labels in ascending order; an empty group is an empty array.

        Raises:
            ValueError: negative numbers, groups that overlap, or an unknown ``by``.
        """
        if many < 0 or few < 0:
            raise ValueError(f"groups: many={many} and few={few} must not be negative")
        if by == "count":
            if few > many + 1:
                raise ValueError(f"groups: few={few} must be at most many + 1 = {many + 1}, or the groups overlap")
            group = np.where(self.counts > many, 0, np.where(self.counts < few, 2, 1))
        elif by == "rank":
            if many + few > len(self):
                raise ValueError(f"groups: many + few = {many + few} is more than the {len(self)} classes")
            order = np.argsort(-self.counts, kind="stable")
            group = np.ones(len(self), dtype=np.int64)
            group[order[:many]] = 0
            group[order[len(self) - few :]] = 2
        else:
            raise ValueError(f"groups: by={by!r} is unknown; use 'count' or 'rank'")
        return {name: np.flatnonzero(group == index) for index, name in enumerate(GROUP_NAMES)}


def _is_positive_integer(count: object) -> bool:
    try:
        value = float(count)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return math.isfinite(value) and value > 0 and value == int(value)


def describe_groups(definition: Mapping[str, Any]) -> dict[str, str]:
    """A group definition in words: ``{"many": "more than 100 training images", "medium": ..., "few": ...}``."""
    many, few = definition["many"], definition["few"]
    if definition["by"] == "rank":
        return {"many": f"the {many} largest classes", "medium": "the classes between", "few": f"the {few} smallest"}
    return {
        "many": f"more than {many} training images",
        "medium": f"{few} to {many} training images",
        "few": f"fewer than {few} training images",
    }
