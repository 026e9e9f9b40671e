"""BM25 by bm25s (Lù 2024), Lucene variant, memory-mapped at query time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.types import Hit
from dgpo_cli.retrieval.ranking import hits, top_rows
from dgpo_cli.retrieval.store import PassageStore
from dgpo_cli.retrieval.words import WordTokenizer

FOLDER = "bm25s"
DEFAULTS: dict[str, Any] = {"variant": "lucene", "k1": 1.5, "b": 0.75, "stopwords": "english"}  # bm25s' defaults


def build(directory: Path, store: PassageStore, settings: dict[str, Any]) -> None:
    import bm25s
    from bm25s.tokenization import Tokenized

    rows, vocabulary = WordTokenizer(settings["stopwords"]).ids(passage.contents for passage in store)
    engine = bm25s.BM25(method=settings["variant"], k1=settings["k1"], b=settings["b"])
    engine.index(Tokenized(ids=rows, vocab=vocabulary), show_progress=False)
    engine.save(directory / FOLDER, show_progress=False)


class BM25Retriever:
    def __init__(self, directory: Path, store: PassageStore, settings: dict[str, Any]) -> None:
        import bm25s

        self._store = store
        self._words = WordTokenizer(settings["stopwords"])
        self._engine = bm25s.BM25.load(directory / FOLDER, mmap=True, show_progress=False)
        self._vocabulary: dict[str, int] = self._engine.vocab_dict

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Hit]:
        known = [self._vocabulary[word] for word in self._words.words(query) if word in self._vocabulary]
        if not known:
            return []
        scores: np.ndarray = self._engine.get_scores_from_ids(known)
        rows = top_rows(scores, k)
        return hits(self._store, rows, scores[rows])
