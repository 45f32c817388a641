"""Which class shares a model's logits assume, which ones they meet, and the logit shift from the one to the other.

    shift_i = log q_i - log p_i,  q the target prior, p the assumed one: p_i ~ pi_i ^ (1 - tau) after a balanced loss
    with tau, pi_i after any other (Menon et al., ICLR 2021, Eq. 9 with q uniform; Hong et al., CVPR 2021, PC softmax)

A constant added to all classes changes nothing, so the shares need not be normalized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..class_names import check_same_names
from ..losses import BALANCED_LOSSES
from ..prior import ClassPrior

TEST_IMBALANCE_FACTORS = (50, 25, 10, 5, 2)  # Hong et al., CVPR 2021, Table 3


def assumed_log_prior(config: Any, prior: ClassPrior) -> np.ndarray:
    """Logarithm of the class shares that a model's logits assume, float64 (C,), up to a constant.

    Args:
        config: of the model: its ``loss`` and ``tau`` (none: an unbalanced loss), its ``adjustment``, and whether it
            met each class equally often (``class_balanced_batches``: cRT, LWS), which leaves equal shares.
        prior: of its training images.

    Raises:
        ValueError: the model was tau-normalized, which leaves the shares unknown.
    """
    adjustment = getattr(config, "adjustment", None) or {}
    if adjustment.get("tau_norm") is not None:
        raise ValueError("model: its classifier was tau-normalized: which class shares its logits assume is unknown")
    if adjustment.get("target_prior") is not None:
        return np.log(target_prior(adjustment["target_prior"], prior))
    if getattr(config, "class_balanced_batches", False):  # --stage classifier, without a balanced loss
        return np.zeros(len(prior))
    balanced = getattr(config, "loss", None) in BALANCED_LOSSES
    return (1.0 - config.tau if balanced else 1.0) * prior.log_prior


def target_prior(description: str | Mapping[str, float], prior: ClassPrior) -> np.ndarray:
    """Class shares, float64 (C,), that sum to 1.

    Args:
        description: "uniform", "train" (those of ``prior``), a JSON file ``{class: share}``, or such a mapping; the
            shares may be counts.

    Raises:
        ValueError: no such file, other classes, or a share that is not above 0.
    """
    if description == "uniform":
        return np.full(len(prior), 1.0 / len(prior))
    if description == "train":
        return prior.pi
    if isinstance(description, str):
        description = read_shares(description)
    check_same_names(prior.names, description, "the model", "target_prior")
    for name, share in description.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < float("inf"):
            raise ValueError(f"target_prior: class {name!r} has the share {share!r}; it must be a number above 0")
    shares = np.array([description[name] for name in prior.names], dtype=np.float64)
    return shares / shares.sum()


def read_shares(file: str) -> dict[str, float]:
    """A JSON file ``{class: share}``."""
    try:
        shares = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"target_prior: {file!r} is neither uniform nor train nor a file that can be read ({error.strerror})"
        ) from None
    except ValueError:
        raise ValueError(f"target_prior: {file!r} is not valid JSON; write {{class name: share}}") from None
    if not isinstance(shares, dict):
        raise ValueError(f"target_prior: {file!r} must hold {{class name: share}}")
    return shares


def long_tailed_priors(prior: ClassPrior) -> dict[str, np.ndarray]:
    """The test distributions of the long-tail literature: ``{name: shares (C,)}``, from forward 50 to backward 50.

    Forward: the k-th largest training class has a share in proportion to ``factor ** (-k / (C - 1))``, backward: the
    k-th smallest (equal counts in label order).
    """
    rank = np.empty(len(prior), dtype=np.int64)
    rank[np.argsort(-prior.counts, kind="stable")] = np.arange(len(prior))

    def shares(factor: float, ranks: np.ndarray) -> np.ndarray:
        weights = float(factor) ** (-ranks / (len(prior) - 1))
        return weights / weights.sum()

    forward = {f"forward {factor}": shares(factor, rank) for factor in TEST_IMBALANCE_FACTORS}
    backward = {f"backward {factor}": shares(factor, len(prior) - 1 - rank) for factor in TEST_IMBALANCE_FACTORS[::-1]}
    return {**forward, "uniform": shares(1, rank), **backward}


def prior_accuracies(predicted: Mapping[str, np.ndarray], priors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Accuracy in percent under test distributions, with and without the logit shift to them.

    No image is drawn or left out: each class's accuracy counts with its share, which is the expectation over all test
    sets that could be drawn with these shares. Classes without a test image are left out, the others' shares rescaled.

    Args:
        predicted: ``labels``, ``predictions`` (N,) and ``shifted_predictions`` (N, P), of `predict_split`.
        priors: P shares (C,), by name.

    Returns:
        ``{name: {"accuracy", "shifted"}}``.
    """
    labels = predicted["labels"]
    outcomes = {}
    for place, (name, shares) in enumerate(priors.items()):
        images = np.bincount(labels, minlength=len(shares))
        weights = shares[labels] / images[labels] / shares[images > 0].sum()  # (N,), of sum 1
        correct = {
            "accuracy": predicted["predictions"] == labels,
            "shifted": predicted["shifted_predictions"][:, place] == labels,
        }
        outcomes[name] = {measure: 100.0 * float(weights[right].sum()) for measure, right in correct.items()}
    return outcomes
