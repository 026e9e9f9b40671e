"""BM25 and dense retrieval together, by reciprocal rank fusion (Cormack et al. 2009).

A passage scores the sum of 1 / (rrf_k + its rank) over the rankings that hold it. Equal sums come in row order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.dense.retriever import DenseConfig, DenseRetriever
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.bm25 import BM25Config, BM25Retriever
from dgpo_cli.retrieval.lexical.ranking import best_rows, hits


@dataclass(frozen=True, slots=True)
class HybridConfig:
    bm25: BM25Config = field(default_factory=BM25Config)
    dense: DenseConfig = field(default_factory=DenseConfig)
    rrf_k: int = field(default=60, metadata={"source": "Cormack et al. 2009"})
    depth: int = field(
        default=100, metadata={"source": "ours", "help": "passages taken from each ranking, or k if more"}
    )

    def __post_init__(self) -> None:
        if self.rrf_k < 0 or self.depth < 1:
            raise ConfigError(
                f"rrf_k = {self.rrf_k}, depth = {self.depth}: too small",
                hint="give an rrf_k of 0 or more and a depth of 1 or more",
            )


class HybridRetriever:
    """Both engines' files lie in one folder, over the same passages; each checks its own when it is opened."""

    Config = HybridConfig
    LIBRARIES = tuple(dict.fromkeys(BM25Retriever.LIBRARIES + DenseRetriever.LIBRARIES))

    @staticmethod
    def build(
        directory: Path, store: PassageStore, config: HybridConfig, progress: Progress | None = None
    ) -> dict[str, Any]:
        return {
            "bm25": BM25Retriever.build(directory, store, config.bm25, progress),
            "dense": DenseRetriever.build(directory, store, config.dense, progress),
        }

    def __init__(self, directory: Path, store: PassageStore, config: HybridConfig, state: Mapping[str, Any]) -> None:
        self._store, self._config = store, config
        self._bm25 = BM25Retriever(directory, store, config.bm25, state["bm25"])
        self._dense = DenseRetriever(directory, store, config.dense, state["dense"])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        depth = max(k, self._config.depth)
        rankings = zip(self._bm25.best(queries, depth), self._dense.best(queries, depth), strict=True)
        fused = (fuse([lexical[0], dense[0]], self._config.rrf_k, k) for lexical, dense in rankings)
        return [hits(self._store, rows, scores) for rows, scores in fused]


def fuse(rankings: Sequence[np.ndarray], rrf_k: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the `k` best of several rankings, each of rows, best first."""
    rows = np.unique(np.concatenate(rankings)).astype(np.int64)
    scores = np.zeros(len(rows))
    for ranking in rankings:
        scores[np.searchsorted(rows, ranking)] += 1 / (rrf_k + np.arange(1, len(ranking) + 1))
    best = best_rows(scores, k)
    return rows[best], scores[best]
