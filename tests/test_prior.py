"""Class prior, logit biases and shot groups: both theorems by hand, and invalid counts."""

import math

import numpy as np
import pytest

from livt_hf import ClassPrior


def test_both_theorems_by_hand():
    """Theorem 1: log pi. Theorem 2: log pi - log(1 - pi) = log(n_i / (N - n_i))."""
    prior = ClassPrior({"cat": 6, "ant": 3, "bee": 1})
    assert prior.names == ("cat", "ant", "bee")
    assert prior.counts.tolist() == [6, 3, 1]
    assert prior.pi.tolist() == pytest.approx([0.6, 0.3, 0.1], rel=1e-15)
    assert prior.log_prior.tolist() == pytest.approx([math.log(0.6), math.log(0.3), math.log(0.1)], rel=1e-15)
    assert prior.log_odds.tolist() == pytest.approx([math.log(6 / 4), math.log(3 / 7), math.log(1 / 9)], rel=1e-15)
    assert {array.dtype for array in (prior.pi, prior.log_prior, prior.log_odds)} == {np.dtype("float64")}
    assert (len(prior), prior.imbalance_factor) == (3, 6.0)


def test_a_uniform_prior_of_two_classes_has_no_odds():
    """The bias of the balanced BCE vanishes at pi = 1/2, that of the balanced CE is the same number for every class."""
    prior = ClassPrior([7, 7])
    assert prior.log_odds.tolist() == [0.0, 0.0]
    assert prior.log_prior.tolist() == [math.log(0.5)] * 2


@pytest.mark.parametrize("counts", [[6, 3, 1], (6, 3, 1), np.array([6, 3, 1]), {"0": 6, "1": 3, "2": 1}, [6.0, 3.0, 1]])
def test_a_sequence_names_its_classes_by_label(counts):
    prior = ClassPrior(counts)
    assert prior.names == ("0", "1", "2")
    assert (prior.counts.tolist(), prior.counts.dtype) == ([6, 3, 1], np.dtype("int64"))


def test_log_odds_are_exact_if_nearly_all_images_are_of_one_class():
    """1 - pi of the first class is 1e-12, of which a subtraction in float64 keeps only four digits."""
    prior = ClassPrior({"head": 10**12, "tail": 1})
    assert prior.log_odds.tolist() == pytest.approx([math.log(10**12), -math.log(10**12)], rel=1e-14)
    subtracted = prior.log_prior[0] - math.log(1 - prior.pi[0])
    assert abs(subtracted / math.log(10**12) - 1) > 1e-7


@pytest.mark.parametrize("count", [0, -3, float("nan"), float("inf"), 2.5, None, "many"])
@pytest.mark.parametrize("as_mapping", [True, False])
def test_a_count_that_is_not_a_positive_integer_is_an_error_with_its_class(count, as_mapping):
    name = "bee" if as_mapping else "1"
    counts = {"ant": 4, "bee": count} if as_mapping else [4, count]
    with pytest.raises(ValueError, match=f"class '{name}' has count {count!r}"):
        ClassPrior(counts)


@pytest.mark.parametrize("counts", [{}, [], {"only": 5}, [5]])
def test_fewer_than_two_classes_are_an_error(counts):
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        ClassPrior(counts)


def test_the_only_class_is_named():
    with pytest.raises(ValueError, match=r"got \['only'\]"):
        ClassPrior({"only": 5})


def test_names_that_are_equal_as_strings_are_an_error():
    with pytest.raises(ValueError, match=r"names must be unique, repeated: \['1'\]"):
        ClassPrior({1: 5, "1": 3, "2": 1})


def as_lists(groups):
    return {name: labels.tolist() for name, labels in groups.items()}


def test_groups_by_count_have_more_than_100_and_fewer_than_20_images():
    prior = ClassPrior([20, 101, 19, 100, 500, 1, 99, 21])
    assert as_lists(prior.groups()) == {"many": [1, 4], "medium": [0, 3, 6, 7], "few": [2, 5]}
    assert as_lists(prior.groups(many=99, few=100)) == {"many": [1, 3, 4], "medium": [], "few": [0, 2, 5, 6, 7]}


def test_groups_can_be_empty():
    groups = ClassPrior([50, 60]).groups()
    assert as_lists(groups) == {"many": [], "medium": [0, 1], "few": []}
    assert {labels.dtype.kind for labels in groups.values()} == {"i"}


def test_groups_by_rank_take_equal_counts_in_label_order():
    prior = ClassPrior([5, 9, 5, 9, 5, 2])  # ranks: 1, 3 | 0, 2, 4 | 5
    assert as_lists(prior.groups(many=1, few=2, by="rank")) == {"many": [1], "medium": [0, 2, 3], "few": [4, 5]}
    assert as_lists(prior.groups(many=3, few=3, by="rank")) == {"many": [0, 1, 3], "medium": [], "few": [2, 4, 5]}
    assert as_lists(prior.groups(many=0, few=0, by="rank")) == {"many": [], "medium": [0, 1, 2, 3, 4, 5], "few": []}


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"many": 10, "few": 12}, r"few=12 must be at most many \+ 1 = 11, or the groups overlap"),
        ({"many": 2, "few": 2, "by": "rank"}, r"many \+ few = 4 is more than the 3 classes"),
        ({"many": -1, "few": 1, "by": "rank"}, "-1"),
        ({"by": "size"}, "by='size' is unknown; use 'count' or 'rank'"),
    ],
)
def test_invalid_group_definitions_are_errors(definition, message):
    with pytest.raises(ValueError, match=message):
        ClassPrior([3, 2, 1]).groups(**definition)
