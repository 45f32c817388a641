"""Intervals of means and differences over nested runs: numbers computed by hand, Student's t from a printed table."""

import pytest
from scipy.stats import ttest_ind

from documents.intervals import Estimate, binomial_half, estimate, nested_mean, unpaired_difference

T1, T2 = 12.7062, 4.30265  # 97.5 % quantiles of Student's t with 1 and 2 degrees of freedom


def test_seeds_of_one_autoencoder():
    found = estimate({"a": [1.0, 2.0, 3.0]})  # variance 1, standard error 1 / sqrt(3)
    assert (found.value, found.runs) == (2.0, 3)
    assert found.half == pytest.approx(T2 / 3**0.5, rel=1e-5)
    assert found.ends == pytest.approx((2 - 2.48414, 2 + 2.48414), rel=1e-5)


def test_autoencoders_that_differ_count_once_each():
    # means 2 and 8: standard error sqrt(18) / sqrt(2) = 3 with 1 degree of freedom; within them sqrt(2) / 2 with 2
    values = {"a": [1.0, 3.0], "b": [7.0, 9.0]}
    assert nested_mean(values) == (5.0, pytest.approx(3.0), 1)
    assert estimate(values).half == pytest.approx(3 * T1, rel=1e-5)


def test_autoencoders_that_vary_no_more_than_seeds_leave_the_error_of_seeds():
    # means 3 and 3; squares within them 8 + 2, variance 10 / 2 = 5, of the mean of means 5 * (1/2 + 1/2) / 4
    mean, error, freedom = nested_mean({"a": [1.0, 5.0], "b": [2.0, 4.0]})
    assert (mean, freedom) == (3.0, 2)
    assert error == pytest.approx(5**0.5 / 2)


def test_autoencoders_with_different_numbers_of_seeds_weigh_the_same():
    # means 1 and 4; squares within them 0 + 2, variance 2 / 2 = 1, error sqrt(1/1 + 1/3) / 2 = 0.577, between them 1.5
    assert nested_mean({"a": [1.0], "b": [3.0, 4.0, 5.0]}) == (2.5, pytest.approx(1.5), 1)


def test_one_seed_of_each_of_three_autoencoders():
    assert estimate({"a": [1.0], "b": [2.0], "c": [3.0]}).half == pytest.approx(T2 / 3**0.5, rel=1e-5)


@pytest.mark.parametrize("values", [{"a": [1.0]}, {"a": [1.0, 2.0]}, {"a": [1.0], "b": [2.0]}])
def test_fewer_than_three_runs_have_no_interval(values):
    found = estimate(values)
    assert (found.half, found.ends, found.sign) == (None, None, 0)


def test_the_test_images_add_their_variance():
    assert estimate({"a": [1.0, 2.0, 3.0]}, 3.0).half == pytest.approx((T2**2 / 3 + 9) ** 0.5, rel=1e-5)
    assert estimate({"a": [1.0, 2.0, 3.0]}, None).half is None


def test_equal_runs_have_the_uncertainty_of_the_test_images_alone():
    assert estimate({"a": [100.0, 100.0, 100.0]}, 1.5).half == 1.5
    difference = unpaired_difference({"a": [5.0, 5.0, 5.0]}, {"none": [4.0, 4.0, 4.0]}, 0.25)
    assert (difference.value, difference.half) == (1.0, 0.25)


def test_the_difference_of_independent_runs_is_welchs():
    first, second = [1.0, 2.0, 3.0], [10.0, 12.0, 14.0, 11.0]
    found = unpaired_difference({"a": first}, {"none": second})
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert found.ends == pytest.approx((interval.low, interval.high))
    assert found.runs == 3
    assert unpaired_difference({"a": first}, {"none": [10.0]}) == Estimate(-8.0, None, 1)


def test_the_binomial_interval_is_agrestis_and_coulls():
    # 4 of 10: (4 + 1.9207) / (10 + 3.8415) = 0.42775; 1.95996 * sqrt(0.42775 * 0.57225 / 13.8415)
    assert binomial_half(40.0, 10) == pytest.approx(26.064, abs=1e-3)
    assert binomial_half(0.0, 200) == pytest.approx(1.3263, abs=1e-4)  # not 0


@pytest.mark.parametrize(("value", "half", "sign"), [(2.0, 1.9, 1), (-2.0, 1.9, -1), (2.0, 2.0, 0), (-1.0, 3.0, 0)])
def test_a_difference_has_a_sign_if_its_interval_excludes_0(value, half, sign):
    assert Estimate(value, half, 3).sign == sign
