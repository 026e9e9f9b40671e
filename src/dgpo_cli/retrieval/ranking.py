"""From scores over all passages to hits."""

from __future__ import annotations

import numpy as np

from dgpo_cli.core.types import Hit
from dgpo_cli.retrieval.store import PassageStore


def top_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the `k` best positive scores, best first; equal scores in row order, so that ties are the same everywhere."""
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, dtype=np.int64)
    threshold = max(float(np.partition(scores, len(scores) - k)[len(scores) - k]), np.finfo(np.float32).tiny)
    rows = np.flatnonzero(scores >= threshold)
    return rows[np.lexsort((rows, -scores[rows]))][:k]


def hits(store: PassageStore, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
    return [
        Hit(store[int(row)], float(score), rank)
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
    ]
