"""The nested bootstrap against a slow one that resamples questions one by one."""

import numpy as np
import pytest

from dgpo_cli.evaluation.stats import nested_interval


def slow(groups, over_groups, resamples=3000):
    generator = np.random.default_rng(7)
    means = []
    for _ in range(resamples):
        chosen = generator.integers(len(groups), size=len(groups)) if over_groups else range(len(groups))
        means.append(np.mean([generator.choice(groups[g], len(groups[g])).mean() for g in chosen]))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("over_groups", [False, True])
def test_against_resampling_question_by_question(over_groups):
    generator = np.random.default_rng(0)
    groups = [generator.choice([-1, 0, 1], size=n, p=p) for n, p in (
        (80, (0.1, 0.5, 0.4)), (50, (0.3, 0.4, 0.3)), (120, (0.2, 0.7, 0.1)))]  # fmt: skip
    found = nested_interval(groups, over_groups=over_groups)
    low, high = slow(groups, over_groups)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))


def test_other_seeds_make_it_wider_where_seeds_differ_and_not_where_they_do_not():
    alike = [np.array([1] * 50 + [0] * 50)] * 3
    apart = [np.array([1] * n + [0] * (100 - n)) for n in (20, 50, 80)]

    def width(groups, over_groups):
        interval = nested_interval(groups, over_groups=over_groups)
        return interval.high - interval.low

    assert width(alike, True) == pytest.approx(width(alike, False), rel=0.05)
    assert width(apart, True) > 3 * width(apart, False)
