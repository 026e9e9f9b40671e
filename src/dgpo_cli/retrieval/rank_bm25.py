"""rank-bm25's BM25Okapi: everything in memory, for small corpora, and an oracle independent of bm25s in tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.types import Hit
from dgpo_cli.retrieval.ranking import hits, top_rows
from dgpo_cli.retrieval.store import PassageStore
from dgpo_cli.retrieval.words import WordTokenizer

DEFAULTS: dict[str, Any] = {"k1": 1.5, "b": 0.75, "stopwords": "english"}


def build(directory: Path, store: PassageStore, settings: dict[str, Any]) -> None:
    """Nothing is written: the scores are made when the index is opened."""


class RankBM25Retriever:
    def __init__(self, directory: Path, store: PassageStore, settings: dict[str, Any]) -> None:
        from rank_bm25 import BM25Okapi

        self._store = store
        self._words = WordTokenizer(settings["stopwords"])
        corpus = [self._words.words(passage.contents) for passage in store]
        self._engine = BM25Okapi(corpus, k1=settings["k1"], b=settings["b"])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        results = []
        for query in queries:
            scores = np.asarray(self._engine.get_scores(self._words.words(query)))
            rows = top_rows(scores, k)
            results.append(hits(self._store, rows, scores[rows]))
        return results
