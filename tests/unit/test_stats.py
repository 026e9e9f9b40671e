"""Intervals, pass@k and paired differences against published values, hand computation and second implementations."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_cli.evaluation.stats import (
    RESAMPLES,
    Interval,
    bootstrap_interval,
    mean_interval,
    mean_paired_difference,
    paired_difference,
    pass_at_k,
    resampled_means,
    share_interval,
    sign_test,
    wilson,
)


def test_wilson_against_published_and_hand_computed_values():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        assert wilson(successes, n).low == pytest.approx(low, abs=5e-5)
        assert wilson(successes, n).high == pytest.approx(high, abs=5e-5)
    assert wilson(0, 20).low == 0.0 and wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(0, 0) == Interval(0.0, 1.0)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_mirrors(n, share):
    successes = round(share * n)
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    if 0 < successes < n:  # the ends solve (p - share)^2 = z^2 p (1 - p) / n
        for end in (interval.low, interval.high):
            assert (end - successes / n) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, rel=1e-6)


def test_the_interval_of_a_mean():
    part = (81 / 263, wilson(81, 263))
    assert mean_interval([part]).low == pytest.approx(wilson(81, 263).low)
    one, two = wilson(81, 263), mean_interval([part] * 4)
    assert two.high - two.low == pytest.approx((one.high - one.low) / 2)  # four times the questions, half the width


def test_paired_difference():
    first = {str(i): i < 50 for i in range(100)}
    second = {str(i): 10 <= i < 80 for i in range(100)}
    result = paired_difference(first, second)
    assert (result.n, result.better, result.worse, result.difference) == (100, 30, 10, 0.2)
    # Standard error of a paired difference: sqrt((b + c) / n - d^2) / sqrt(n).
    error = ((0.4 - 0.04) / 100) ** 0.5
    assert result.interval.low == pytest.approx(0.2 - 1.96 * error, abs=0.02)
    assert result.interval.high == pytest.approx(0.2 + 1.96 * error, abs=0.02)
    assert paired_difference(first, first).difference == 0.0 and paired_difference(first, first).p_value == 1.0
    with pytest.raises(ValueError, match="1 questions were asked of one side only"):
        paired_difference(first, dict.fromkeys(list(second)[1:], True))


def test_the_sign_test_by_hand():
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(3, 3) == sign_test(0, 0) == 1.0


def every_resample(values):
    """Second implementation, exact: the mean of each of the n ** n equally likely resamples, sorted."""
    return np.sort(
        [sum(values[i] for i in chosen) / len(values) for chosen in product(range(len(values)), repeat=len(values))]
    )


@pytest.mark.parametrize("values", [[1, 0, -1, 0, 1, 1], [0.5, -0.25, 0, 0, 1, 0.75], [1, 1, 1, 1, 1, -1]], ids=str)
def test_the_bootstrap_has_the_distribution_of_all_resamples(values):
    exact = every_resample(values)
    drawn = np.sort(resampled_means(values, np.random.default_rng(1)))
    assert drawn.mean() == pytest.approx(exact.mean(), abs=0.02)
    # Two distribution functions, the drawn one off by at most the Kolmogorov distance of so many draws (p = 1e-6).
    points = np.unique(exact.round(9)) + 1e-6
    gap = np.searchsorted(drawn, points) / len(drawn) - np.searchsorted(exact, points) / len(exact)
    assert np.abs(gap).max() < math.sqrt(math.log(2e6) / 2 / RESAMPLES)


def test_the_paired_interval_is_that_of_all_resamples():
    first = dict(enumerate([False, False, True, False, True, False, False]))
    second = dict(enumerate([True, True, False, False, True, True, False]))
    result = paired_difference(first, second)
    low, high = np.quantile(every_resample([1, 1, -1, 0, 0, 1, 0]), [0.025, 0.975])
    assert (result.difference, result.better, result.worse) == (2 / 7, 3, 1)
    # The lattice of possible means has steps of 1/7, so the right quantile is met exactly or missed by far.
    assert result.interval.low == pytest.approx(low) and result.interval.high == pytest.approx(high)
    assert (round(low * 7), round(high * 7)) == (-2, 5)


def test_shares_of_draws_are_paired_by_question():
    first, second = {"a": 0.25, "b": 1.0, "c": 0.5}, {"a": 0.75, "b": 0.75, "c": 0.5}
    result = paired_difference(first, second)
    assert (result.better, result.worse) == (1, 1)
    assert result.difference == pytest.approx((0.5 - 0.25) / 3)


def test_the_mean_over_sets_counts_every_set_the_same():
    small = ({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.0})
    large = ({str(i): float(i % 2) for i in range(100)}, {str(i): float(i % 4 == 1) for i in range(100)})
    difference, interval = mean_paired_difference([small, large])
    assert difference == pytest.approx((0.5 - 0.25) / 2)
    # Variances of independent means add: 0.25 / 2 of the two questions, 0.1875 / 100 of the hundred; over 2 squared.
    draws = (
        resampled_means([1, 0], np.random.default_rng(0))
        + resampled_means([-1] * 25 + [0] * 75, np.random.default_rng(1))
    ) / 2
    assert draws.std() == pytest.approx(math.sqrt((0.125 + 0.001875) / 4), rel=0.05)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize(("n", "correct"), [(5, 0), (5, 1), (6, 2), (6, 5), (4, 4)])
def test_pass_at_k_against_all_choices_of_k_draws(n, correct):
    draws = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        choices = list(combinations(draws, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(any(c) for c in choices) / len(choices))
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, correct, n + 1)


def test_the_interval_of_questions_with_several_draws():
    assert share_interval([(1, 1), (0, 1), (1, 1)]) == wilson(2, 3)
    groups = [(4, 4), (0, 4), (2, 4), (1, 4)] * 25
    assert share_interval(groups) == bootstrap_interval([1.0, 0.0, 0.5, 0.25] * 25)
    interval = share_interval(groups)
    spread = math.sqrt(np.var([1.0, 0.0, 0.5, 0.25]) / 100)  # of the mean over 100 questions, not over 400 draws
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.06)
    assert share_interval([(0, 4)] * 20) == wilson(0, 20) and share_interval([(4, 4)] * 20) == wilson(20, 20)
    assert share_interval([]) == Interval(0.0, 1.0)
