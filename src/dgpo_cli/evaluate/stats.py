"""How sure a share of right answers is: intervals, and the difference between two models on the same questions.

Wilson's interval for one share (Wilson 1927), MOVER for a mean of shares (Zou and Donner 2008), the bootstrap and the
exact sign test (McNemar) for paired answers.
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


def mean_interval(groups: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> Interval:
    """Interval of the plain mean of several shares, each (successes, n), from their own Wilson intervals."""
    if not groups:
        raise ValueError("a mean of no share")
    shares = [successes / n if n else 0.0 for successes, n in groups]
    single = [wilson(successes, n, confidence) for successes, n in groups]
    mean = sum(shares) / len(shares)
    below = math.sqrt(sum((share - i.low) ** 2 for share, i in zip(shares, single, strict=True))) / len(shares)
    above = math.sqrt(sum((i.high - share) ** 2 for share, i in zip(shares, single, strict=True))) / len(shares)
    return Interval(max(0.0, mean - below), min(1.0, mean + above))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first, over the questions that both answered."""

    n: int
    difference: float
    interval: Interval  # percentile bootstrap over questions
    better: int  # questions that only the second got right
    worse: int
    p_value: float  # exact two-sided sign test on those


def paired_difference(
    first: Mapping[str, bool], second: Mapping[str, bool], *, seed: int = 0, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compare two models by question key. Raises ValueError unless both were asked the same questions."""
    if first.keys() != second.keys() or not first:
        raise ValueError(f"{len(first.keys() ^ second.keys())} questions were asked of one side only, of {len(first)}")
    n = len(first)
    better = sum(second[key] and not first[key] for key in first)
    worse = sum(first[key] and not second[key] for key in first)
    # A resample of questions is a multinomial draw of the three things that can happen to one.
    draws = np.random.default_rng(seed).multinomial(n, [better / n, worse / n, (n - better - worse) / n], RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [tail, 1 - tail])
    return PairedDifference(
        n, (better - worse) / n, Interval(float(low), float(high)), better, worse, sign_test(better, worse)
    )


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
    spread, and no more is known.
    """
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
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
