"""Shared by the lexical retrievers: limits of their settings, and the step from scores to hits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.index.store import PassageStore

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

    Passages that match with a score of 0 are added by `with_unscored`. `among` may name `k` or more rows without
    repetition, of which some are likely to be among the best: it makes the search faster and changes nothing.
    """
    if k < 1:
        return np.zeros(0, dtype=np.int64)
    # The k-th best of some rows is at most the k-th best of all, and one comparison is faster than any selection.
    least = 0.0 if among is None or len(among) < k else kth_best(scores[among], k)
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    best: np.ndarray = rows[best_rows(scores[rows], k)]
    return best


def sharing(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand in any of the columns, one of each word asked for, and in how many each of them does."""
    rows, shared = np.unique(np.concatenate(columns), return_counts=True)
    return rows.astype(np.int64), shared


def with_unscored(rows: np.ndarray, scores: np.ndarray, k: int, held: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Fill `rows`, the best with a positive score, up to `k` with those that share a word and score 0 or less.

    A word in half of the passages or more, of two passages any word, has a weight of 0 by Robertson's idf, and one in
    all of them by ATIRE's; the passages that hold it match all the same. `held` are the rows that share `shared` words
    with the query. The better scores come first, then more shared words, then the row order.
    """
    rest = scores[held] <= 0
    held, shared = held[rest], shared[rest]
    order = np.lexsort((held, -shared, -scores[held]))
    return np.concatenate([rows, held[order][: max(0, k - len(rows))]])


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
