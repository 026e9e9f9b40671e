"""rank-bm25's BM25Okapi: everything in memory and one pass over it per query word, so for small corpora only.

With `idf=okapi` it is the library as it stands: a word in half of the passages or more counts little or nothing, which
matters where the corpus is tiny. With `idf=lucene` it ranks as the bm25 retriever does, by independent code; its scores
are then (k1 + 1) times as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.ranking import contents, hits, require_bm25_range, top_rows, with_unscored
from dgpo_cli.retrieval.lexical.words import Language, Tokenizer, require_words, with_words, words_of

# The library divides by k1 and the count of a word, and would make NaN of passages without it.
_LEAST_K1 = 1e-12


@dataclass(frozen=True, slots=True)
class RankBM25Config:
    idf: Literal["okapi", "lucene"] = field(default="okapi", metadata={"source": "rank-bm25"})
    k1: float = field(default=1.5, metadata={"source": "rank-bm25's default"})
    b: float = field(default=0.75, metadata={"source": "rank-bm25's default"})
    stopwords: Language = field(default="english", metadata={"source": "as bm25"})
    stemmer: Language = field(default="none", metadata={"source": "as bm25"})
    tokenizer: Tokenizer = field(
        default="auto", metadata={"source": "ours", "help": "words as bm25s cuts them, or unicode: of any script"}
    )

    def __post_init__(self) -> None:
        require_bm25_range(self.k1, self.b)


class RankBM25Retriever:
    Config = RankBM25Config
    LIBRARIES = ("rank-bm25", "bm25s", "PyStemmer", "numpy")  # bm25s for its stop words

    @staticmethod
    def build(
        _directory: Path, store: PassageStore, config: RankBM25Config, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Writes nothing: scores are made when the index is opened. Raises InputError if no passage holds a word."""
        found, state = with_words(config, lambda words: sum(len(words.words(t)) for t in contents(store, progress)))
        require_words(found > 0)
        return state

    def __init__(self, _directory: Path, store: PassageStore, config: RankBM25Config, state: Mapping[str, Any]) -> None:
        from rank_bm25 import BM25Okapi

        self._store = store
        self._words = words_of(config, state)
        corpus = [self._words.words(passage.contents) for passage in store]
        self._engine = BM25Okapi(corpus, k1=max(config.k1, _LEAST_K1), b=config.b)
        if config.idf == "lucene":
            frequencies: dict[str, int] = {}
            for counts in self._engine.doc_freqs:
                for word in counts:
                    frequencies[word] = frequencies.get(word, 0) + 1
            self._engine.idf = {w: math.log1p((len(corpus) - n + 0.5) / (n + 0.5)) for w, n in frequencies.items()}

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        results = []
        for query in queries:
            words = self._words.query(query)
            scores = np.asarray(self._engine.get_scores(words))
            rows = top_rows(scores, k)
            if len(rows) < k:
                # The library's idf of a word in half of the passages or more is 0 or below.
                shared = np.array([sum(word in counts for word in set(words)) for counts in self._engine.doc_freqs])
                held = np.flatnonzero(shared)
                rows = with_unscored(rows, scores, k, held, shared[held])
            results.append(hits(self._store, rows, scores[rows]))
        return results
