"""Uncertainty of a share of right answers: intervals, pass@k, and the paired difference of two models.

Wilson's interval for one share (Wilson 1927), MOVER for a mean of shares (Zou and Donner 2008), the percentile
bootstrap over questions for paired answers and where a question has several draws, the exact sign test (McNemar), and
the unbiased pass@k (Chen et al. 2021, arXiv 2107.03374).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, of 95 % where nothing else is said."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the share `successes / n`; [0, 1] where nothing was asked."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 exactly; rounding must not push the share out of its interval.
    return Interval(min(share, max(0.0, centre - reach)), max(share, min(1.0, centre + reach)))


def mean_interval(parts: Sequence[tuple[float, Interval]], *, least: float = 0.0) -> Interval:
    """Interval, from `least` to 1, of the plain mean of several independent shares, each with its own interval."""
    if not parts:
        raise ValueError("a mean of no share")
    mean = sum(share for share, _ in parts) / len(parts)
    below = math.sqrt(sum((share - own.low) ** 2 for share, own in parts)) / len(parts)
    above = math.sqrt(sum((own.high - share) ** 2 for share, own in parts)) / len(parts)
    return Interval(max(least, mean - below), min(1.0, mean + above))


def resampled_means(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Means [RESAMPLES] of as many bootstrap samples of `values`."""
    # Few distinct values occur, so a sample is a multinomial draw of how often each of them does.
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = rng.multinomial(len(values), counts / len(values), RESAMPLES)
    result: np.ndarray = draws @ distinct / len(values)
    return result


def bootstrap_interval(
    values: Sequence[float], *, least: float = 0.0, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile interval of the mean of `values` from `least` to 1, one per question. Raises ValueError without any.

    Equal values, also a single one, have no spread to resample: see `_without_spread`.
    """
    if not values:
        raise ValueError("a mean of nothing")
    if len(set(values)) == 1:
        return _without_spread(values[0], len(values), least, confidence)
    return _percentile(resampled_means(values, np.random.default_rng(seed)), confidence)


def _without_spread(value: float, n: int, least: float, confidence: float) -> Interval:
    """Interval of a mean where all `n` questions gave `value`: as many others as Wilson allows could be anything.

    Resampling would give an interval of no width, as if one question were enough.
    """
    unseen = wilson(0, n, confidence).high
    return Interval(value - unseen * (value - least), value + unseen * (1.0 - value))


def _percentile(means: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def share_interval(groups: Sequence[tuple[int, int]]) -> Interval:
    """Interval of the mean over questions of each one's share, given as (successes, draws).

    Wilson's with one draw per question. With several, questions are resampled, since the draws of one are alike; where
    all draws agree that would show no spread at all, and Wilson's over the questions is taken again.
    """
    shares = [successes / n for successes, n in groups]
    if all(n == 1 for _, n in groups) or set(shares) in ({0.0}, {1.0}):
        return wilson(round(sum(shares)), len(groups))
    return bootstrap_interval(shares)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n draws, taken without putting back, hold one of the `correct` ones."""
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right among {n} draws")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first, over the questions that both answered."""

    n: int
    difference: float
    interval: Interval  # percentile bootstrap over questions
    better: int  # questions that only the second got right, or right more often
    worse: int
    p_value: float  # exact two-sided sign test on those


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compare two models by question: right or wrong, or the share of right draws.

    Raises ValueError unless both were asked the same questions.
    """
    differences = _differences(first, second)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return PairedDifference(
        n=len(differences),
        difference=sum(differences) / len(differences),
        interval=bootstrap_interval(differences, least=-1.0, seed=seed, confidence=confidence),
        better=better,
        worse=worse,
        p_value=sign_test(better, worse),
    )


def mean_paired_difference(
    sets: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], *, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """The mean over QA sets of each set's difference, second minus first; questions are resampled within each set.

    Where a set shows no spread to draw from, the sets' own intervals are put together (MOVER) instead.
    """
    if not sets:
        raise ValueError("a mean of no set")
    rng = np.random.default_rng(seed)
    differences = [_differences(first, second) for first, second in sets]
    mean = sum(sum(one) / len(one) for one in differences) / len(sets)
    if any(len(set(one)) == 1 for one in differences):
        own = [bootstrap_interval(one, least=-1.0, seed=seed, confidence=confidence) for one in differences]
        return mean, mean_interval(
            [(sum(one) / len(one), i) for one, i in zip(differences, own, strict=True)], least=-1.0
        )
    means = sum(resampled_means(one, rng) for one in differences) / len(sets)
    return mean, _percentile(np.asarray(means), confidence)


def _differences(first: Mapping[str, float], second: Mapping[str, float]) -> list[float]:
    if first.keys() != second.keys() or not first:
        raise ValueError(f"{len(first.keys() ^ second.keys())} questions were asked of one side only, of {len(first)}")
    return [float(second[key]) - float(first[key]) for key in first]


def sign_test(better: int, worse: int) -> float:
    """Probability of a split at least this uneven if both directions were equally likely."""
    total = better + worse
    ways, splits = 1, 1  # to choose k of them, for k = 0; and for 0 to k
    for k in range(min(better, worse)):
        ways = ways * (total - k) // (k + 1)
        splits += ways
    return min(1.0, 2 * splits / (1 << total))


def nested_interval(
    groups: Sequence[np.ndarray], *, over_groups: bool, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile bootstrap of the mean of group means; each group holds -1, 0 or 1 per question.

    Questions are resampled inside their group; with `over_groups` the groups (training seeds) are resampled first, so
    that the interval is about further seeds too. With three seeds that part is coarse: it is at least as wide as their
    spread, and no more is known. Raises ValueError without a group or for an empty one.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("a mean of nothing")
    values = {float(value) for group in groups for value in group}
    if len(values) == 1:
        return _without_spread(values.pop(), sum(map(len, groups)), -1.0, confidence)
    shares = np.array([[(group == v).mean() for v in (-1, 0, 1)] for group in groups])  # [G, 3]
    sizes = np.array([len(group) for group in groups])
    generator = np.random.default_rng(seed)
    count = len(groups)
    chosen = np.tile(np.arange(count), (RESAMPLES, 1))
    if over_groups:
        chosen = generator.integers(count, size=(RESAMPLES, count))
    means = np.zeros(RESAMPLES)
    for place in range(count):
        index = chosen[:, place]
        drawn = generator.multinomial(sizes[index], shares[index])  # [RESAMPLES, 3]
        means += (drawn[:, 2] - drawn[:, 0]) / sizes[index] / count
    return _percentile(means, confidence)
