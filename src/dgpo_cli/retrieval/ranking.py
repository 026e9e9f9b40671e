"""What the lexical retrievers share: limits of their settings, and the way from scores to hits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.store import PassageStore

_REPORT_EVERY = 2_000  # passages


def require_bm25_range(k1: float, b: float) -> None:
    """Raises ConfigError outside k1 >= 0 and 0 <= b <= 1, where BM25's formula means nothing."""
    if not 0 <= k1 < float("inf"):
        raise ConfigError(f"k1 = {k1} is out of range", hint="give a k1 of 0 or more, such as 1.5")
    if not 0 <= b <= 1:
        raise ConfigError(f"b = {b} is out of range", hint="give a b from 0 to 1, such as 0.75")


def contents(store: PassageStore, progress: Progress | None) -> Iterator[str]:
    """The contents of every passage, in order."""
    for row, passage in enumerate(store):
        if progress is not None and row % _REPORT_EVERY == 0:
            progress(row, len(store))
        yield passage.contents


def top_rows(scores: np.ndarray, k: int, *, among: np.ndarray | None = None) -> np.ndarray:
    """Rows of the `k` best positive scores, best first; equal scores in row order, so ties are the same everywhere.

    A score of zero says that nothing matched, so it is no hit. `among` may name `k` or more rows without repetition, of
    which some are likely to be among the best: it makes the search faster and changes nothing.
    """
    if k < 1:
        return np.zeros(0, dtype=np.int64)
    # The k-th best of some rows is at most the k-th best of all, and one comparison is faster than any selection.
    least = 0.0 if among is None or len(among) < k else kth_best(scores[among], k)
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    best: np.ndarray = rows[best_rows(scores[rows], k)]
    return best


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the `k` best scores of either sign, best first, equal scores in row order."""
    rows = np.flatnonzero(scores >= kth_best(scores, k))
    best: np.ndarray = rows[np.lexsort((rows, -scores[rows]))][:k]
    return best


def kth_best(scores: np.ndarray, k: int) -> float:
    """The `k`-th best score, or minus infinity where there are no more than `k`."""
    if len(scores) <= k:
        return -math.inf
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def hits(store: PassageStore, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
    """Rows and their scores, both best first, as hits."""
    return [
        Hit(store[int(row)], float(score), rank)
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
    ]
