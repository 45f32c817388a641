"""The class prior that a model's logits assume, other test priors, and the logit shift from one to the other.

    shift_i = log q_i - log p_i,  q the target prior, p the assumed one: p_i ~ pi_i ^ (1 - tau) after a balanced loss
    with tau, pi_i after any other (Menon et al., ICLR 2021, Eq. 9 with q uniform; Hong et al., CVPR 2021, PC softmax)

A constant added to all logits changes nothing, so priors need not be normalized.
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
    """Logarithm of the class prior that a model's logits assume, float64 (C,), up to a constant.

    Args:
        config: of the model: its ``loss``, ``tau`` and ``class_weights`` (without a loss, an unbalanced one is
            assumed; a softmax cross-entropy with weights w has its minimum at the prior w pi), ``adjustment``, and
            ``class_balanced_batches`` (cRT, LWS: every class was sampled equally often; a uniform prior).
        prior: of its training images.

    Raises:
        ValueError: the model was tau-normalized, so its prior is unknown.
    """
    adjustment = getattr(config, "adjustment", None) or {}
    if adjustment.get("tau_norm") is not None:
        raise ValueError(
            "model: its classifier was tau-normalized, so the class prior that its logits assume is unknown"
        )
    if adjustment.get("target_prior") is not None:
        return np.log(target_prior(adjustment["target_prior"], prior))
    if getattr(config, "class_balanced_batches", False):  # --stage classifier, without a balanced loss
        return np.zeros(len(prior))
    balanced = getattr(config, "loss", None) in BALANCED_LOSSES
    assumed = (1.0 - config.tau if balanced else 1.0) * prior.log_prior
    weights = getattr(config, "class_weights", None)
    if weights and config.loss in ("ce", "bal_ce"):  # those of the BCE losses scale both sides of a class's loss
        assumed = assumed + np.log([weights[name] for name in prior.names])
    return assumed


def target_prior(description: str | Mapping[str, float], prior: ClassPrior) -> np.ndarray:
    """A class prior, float64 (C,), that sums to 1.

    Args:
        description: "uniform", "train" (``prior`` itself), a JSON file ``{class: probability or count}``, or such a
            mapping.

    Raises:
        ValueError: no such file, other classes, or a value that is not above 0.
    """
    if description == "uniform":
        return np.full(len(prior), 1.0 / len(prior))
    if description == "train":
        return prior.pi
    if isinstance(description, str):
        description = read_prior(description)
    check_same_names(prior.names, description, "the model", "target_prior")
    for name, value in description.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"target_prior: class {name!r} has the value {value!r}; it must be a number above 0")
    values = np.array([description[name] for name in prior.names], dtype=np.float64)
    return values / values.sum()


def read_prior(file: str) -> dict[str, float]:
    """Read a JSON file ``{class: probability or count}``; ValueError if it is missing or something else."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"target_prior: {file!r} is neither uniform nor train nor a readable file ({error.strerror})"
        ) from None
    except ValueError:
        raise ValueError(
            f"target_prior: {file!r} is not valid JSON; write {{class name: probability or count}}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"target_prior: {file!r} must contain {{class name: probability or count}}")
    return values


def long_tailed_priors(prior: ClassPrior) -> dict[str, np.ndarray]:
    """The test priors of the long-tail literature: ``{name: prior (C,)}``, from forward 50 to backward 50.

    Forward: the probability of the k-th largest training class is proportional to ``factor ** (-k / (C - 1))``;
    backward: that of the k-th smallest (equal counts in label order).
    """
    rank = np.empty(len(prior), dtype=np.int64)
    rank[np.argsort(-prior.counts, kind="stable")] = np.arange(len(prior))

    def exponential(factor: float, ranks: np.ndarray) -> np.ndarray:
        weights = float(factor) ** (-ranks / (len(prior) - 1))
        return weights / weights.sum()

    forward = {f"forward {factor}": exponential(factor, rank) for factor in TEST_IMBALANCE_FACTORS}
    backward = {
        f"backward {factor}": exponential(factor, len(prior) - 1 - rank) for factor in TEST_IMBALANCE_FACTORS[::-1]
    }
    return {**forward, "uniform": exponential(1, rank), **backward}


def prior_accuracies(predicted: Mapping[str, np.ndarray], priors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Accuracy in percent under several test priors, without and with the logit shift to each.

    Nothing is resampled: per-class accuracies are weighted by the prior, which is the expectation over all test sets
    with that prior. Classes without a test image are left out, and the prior of the others is rescaled.

    Args:
        predicted: ``labels``, ``predictions`` (N,) and ``shifted_predictions`` (N, P), of `predict_split`.
        priors: P priors (C,), by name.

    Returns:
        ``{name: {"accuracy", "shifted"}}``.
    """
    labels = predicted["labels"]
    outcomes = {}
    for index, (name, prior) in enumerate(priors.items()):
        images = np.bincount(labels, minlength=len(prior))
        weights = prior[labels] / images[labels] / prior[images > 0].sum()  # (N,), sums to 1
        correct = {
            "accuracy": predicted["predictions"] == labels,
            "shifted": predicted["shifted_predictions"][:, index] == labels,
        }
        outcomes[name] = {measure: 100.0 * float(weights[right].sum()) for measure, right in correct.items()}
    return outcomes
