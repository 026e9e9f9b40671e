"""BM25 by bm25s (Lù 2024), memory-mapped at query time; queries over a large corpus are spread over the cores.

Every word of every passage is scored when the index is built (retrieval/lexical/postings.py), so a query only adds up
columns. The files are bm25s's. The adding and the choice of the best are ours: in numpy, and without sorting all
passages.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.machine import num_cores
from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.postings import Postings, Variant, build_postings
from dgpo_cli.retrieval.lexical.ranking import contents, hits, require_bm25_range, sharing, top_rows, with_unscored
from dgpo_cli.retrieval.lexical.vocabulary import Vocabulary, write_vocabulary
from dgpo_cli.retrieval.lexical.words import Language, Tokenizer, WordTokenizer, require_words, with_words, words_of

# Passages from which on threads help: adding scores up holds the interpreter's lock, and the rest is short below.
_THREADED = 500_000
FOLDER = "bm25s"
_WRITING = "postings"


@dataclass(frozen=True, slots=True)
class BM25Config:
    # bm25s also has bm25l and bm25+, which give every passage a score, matching or not.
    variant: Variant = field(default="lucene", metadata={"source": "bm25s's default"})
    k1: float = field(default=1.5, metadata={"source": "bm25s's default"})
    b: float = field(default=0.75, metadata={"source": "bm25s's default"})
    stopwords: Language = field(default="english", metadata={"source": "bm25s's default"})
    stemmer: Language = field(default="none", metadata={"source": "bm25s's default"})
    tokenizer: Tokenizer = field(
        default="auto", metadata={"source": "ours", "help": "words as bm25s cuts them, or unicode: of any script"}
    )

    def __post_init__(self) -> None:
        require_bm25_range(self.k1, self.b)


class BM25Retriever:
    Config = BM25Config
    LIBRARIES = ("bm25s", "PyStemmer", "numpy")

    @staticmethod
    def build(
        directory: Path, store: PassageStore, config: BM25Config, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Raises InputError if no passage holds a word."""
        import bm25s

        def postings(words: WordTokenizer) -> Postings:
            shutil.rmtree(directory / _WRITING, ignore_errors=True)
            texts = contents(store, progress)
            return build_postings(directory / _WRITING, texts, words, variant=config.variant, k1=config.k1, b=config.b)

        columns, state = with_words(config, postings)
        require_words(bool(columns.vocabulary))
        engine = bm25s.BM25(method=config.variant, k1=config.k1, b=config.b)
        engine.scores = {"data": columns.data, "indices": columns.indices, "indptr": columns.indptr}
        engine.scores["num_docs"] = columns.rows
        engine.vocab_dict, engine.nonoccurrence_array = columns.vocabulary, None
        engine.save(directory / FOLDER, show_progress=False)
        write_vocabulary(directory / FOLDER, columns.vocabulary)
        shutil.rmtree(directory / _WRITING)
        return state

    def __init__(self, directory: Path, store: PassageStore, config: BM25Config, state: Mapping[str, Any]) -> None:
        import bm25s

        self._directory, self._store = directory, store
        self._words = words_of(config, state)
        try:
            self._engine = bm25s.BM25.load(directory / FOLDER, mmap=True, load_vocab=False, show_progress=False)
            self._vocabulary = Vocabulary(directory / FOLDER)
        except (OSError, ValueError, KeyError, TypeError) as error:
            pass_on(error)
            raise self._damaged(f"cannot be opened: {error}") from error
        if self._engine.scores["num_docs"] != len(store):
            raise self._damaged(f"is over {self._engine.scores['num_docs']} passages, the index holds {len(store)}")
        # Plain arrays over the mapped files: every slice of numpy's own kind of mapped array costs a microsecond.
        self._columns = [np.asarray(self._engine.scores[name]) for name in ("data", "indices", "indptr")]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [hits(self._store, rows, scores) for rows, scores in self.best(queries, k)]

    def best(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query the rows of its passages and their scores, best first."""
        words = [self._words.query(query) for query in queries]
        columns = iter(self._vocabulary.columns(chain.from_iterable(words)))
        asked = [[column for column in islice(columns, len(of_query)) if column >= 0] for of_query in words]
        threads = min(len(asked), num_cores())
        if threads < 2 or len(self._store) < _THREADED:
            return [self._best(words, k) for words in asked]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda words: self._best(words, k), asked))

    def _best(self, words: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """`words` may hold one twice, which then counts twice."""
        data, indices, indptr = self._columns
        scores = np.zeros(len(self._store), dtype=data.dtype)
        try:
            columns = [slice(int(indptr[word]), int(indptr[word + 1])) for word in words]
            for column in columns:
                np.add.at(scores, indices[column], data[column])
        except (IndexError, ValueError) as error:
            raise self._damaged(f"is damaged: {error}") from error
        enough = [column for column in columns if column.stop - column.start >= k]
        rarest = min(enough, key=lambda column: column.stop - column.start, default=None)
        rows = top_rows(scores, k, among=None if rarest is None else indices[rarest])
        if len(rows) < k and columns:
            rows = with_unscored(rows, scores, k, *sharing([indices[indptr[w] : indptr[w + 1]] for w in set(words)]))
        return rows, scores[rows]

    def _damaged(self, what: str) -> RetrievalError:
        return RetrievalError(
            f"{self._directory / FOLDER} {what}", hint="see `dgpo index check`, or build it again with --overwrite"
        )
