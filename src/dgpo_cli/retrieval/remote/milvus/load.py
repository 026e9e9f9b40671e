"""Rows into a Milvus collection, a batch at a time, from where an earlier load ended.

The collection itself shows how far a load came: rows go in in order, each batch is acknowledged before the next, and
each row holds a hash of its passage. So the same command goes on after a kill, on whatever machine it is given.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.checksums import file_digest
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import InputError, RetrievalError
from dgpo_cli.retrieval.index.store import PASSAGES, PassageStore
from dgpo_cli.retrieval.lexical.bm25 import BM25Config
from dgpo_cli.retrieval.lexical.postings import Counts, count_words, word_scores
from dgpo_cli.retrieval.lexical.ranking import contents
from dgpo_cli.retrieval.lexical.words import WordTokenizer, with_words
from dgpo_cli.retrieval.remote.milvus.collection import (
    HASH,
    LONGEST_TEXT,
    MOST,
    ROW,
    TEXT,
    MilvusCollection,
    VectorField,
    passage_hash,
)

BATCH = 1_000  # rows written at once; what a kill loses at most
VOCABULARY = "words.json"  # its order gives a word its dimension
COUNTS = "counts"  # folder, of no use once the rows are in
# A word that is in too many passages to score matches all the same; this is less than a score is rounded to.
_WORTHLESS = 1e-9
_READ = MOST // 2  # rows compared at once


def count_passages(
    directory: Path, store: PassageStore, config: BM25Config, progress: Progress | None
) -> tuple[Counts, dict[str, Any]]:
    """Count the words and write the vocabulary; also what the index records of its tokenizer.

    Raises InputError if no passage holds a word.
    """

    def count(words: WordTokenizer) -> Counts:
        shutil.rmtree(directory / COUNTS, ignore_errors=True)
        return count_words(directory / COUNTS, contents(store, progress), words)

    counts, state = with_words(config, count)
    if not counts.vocabulary:
        raise InputError(
            "no passage holds a word of two letters that is not a stop word",
            hint="give -o bm25.stopwords=none, or a corpus with text in it",
        )
    write_atomic(directory / VOCABULARY, json.dumps(list(counts.vocabulary), ensure_ascii=False))
    return counts, state


def identity(directory: Path, *parts: Any) -> str:
    """Digest of all that a row depends on, as 16 hex digits: the passages, and `parts`."""
    text = json.dumps([file_digest(directory / PASSAGES), *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class CollectionRows:
    """Rows of a collection: the hash of each passage, and vector, word scores or text as its fields ask."""

    def __init__(
        self,
        store: PassageStore,
        *,
        vectors: tuple[str, np.ndarray] | None = None,  # name of the field, and [N, H]
        words: tuple[str, Counts, BM25Config] | None = None,
        text: bool = False,
    ) -> None:
        self.store, self._vectors, self._words, self._text = store, vectors, words, text

    def batches(self, first: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The first row of a batch, and its rows. Raises InputError for a text that Milvus cannot hold."""
        lexical = None if self._words is None else _weights(self._words[1], self._words[2], first)
        for start in range(first, len(self.store), BATCH):
            rows = range(start, min(start + BATCH, len(self.store)))
            passages = [self.store[row] for row in rows]
            batch: list[dict[str, Any]] = [
                {ROW: row, HASH: passage_hash(passage)} for row, passage in zip(rows, passages, strict=True)
            ]
            if self._vectors is not None:
                name, vectors = self._vectors
                for made, vector in zip(batch, vectors[start : rows.stop].astype(np.float32), strict=True):
                    made[name] = vector
            if self._words is not None and lexical is not None:
                for made, weights in zip(batch, next(lexical), strict=True):
                    made[self._words[0]] = weights
            if self._text:
                for made, passage in zip(batch, passages, strict=True):
                    if len(passage.contents.encode()) > LONGEST_TEXT:
                        raise InputError(
                            f"passage {passage.id!r} has more than {LONGEST_TEXT} bytes, and Milvus takes no more",
                            hint="shorten it, or leave -o scoring=milvus out",
                        )
                    made[TEXT] = passage.contents
            yield start, batch


def _weights(counts: Counts, config: BM25Config, first: int) -> Iterator[list[dict[int, float]]]:
    """Per batch the sparse vector of each row: the score of each of its words."""
    start = first
    no_word = {len(counts.vocabulary): 1.0}  # a vector may not be empty, and no query asks for this dimension
    scored = word_scores(counts, variant=config.variant, k1=config.k1, b=config.b, first=first, size=BATCH)
    for held, word, scores in scored:
        stop = min(start + BATCH, len(counts.lengths))
        ends = np.searchsorted(held, np.arange(start, stop + 1))
        found = [
            {w: max(s, _WORTHLESS) for w, s in zip(word[a:b].tolist(), scores[a:b].tolist(), strict=True)}
            for a, b in pairwise(ends)
        ]
        yield [weights or no_word for weights in found]
        start = stop


def load(
    collection: MilvusCollection,
    fields: Sequence[VectorField],
    rows: CollectionRows,
    *,
    shards: int,
    replicas: int,
    progress: Progress | None = None,
) -> None:
    """Fill the collection, going on where an earlier load ended. A collection that holds anything else is replaced.

    Raises RetrievalError where the server fails, or loses rows.
    """
    total = len(rows.store)
    collection.make(fields, shards=shards, replicas=replicas)
    held = collection.count()
    wrong = first_wrong(collection, rows.store, 0, total, progress) if held else 0
    first = total if wrong is None else wrong // BATCH * BATCH
    if held > min(total, first + BATCH):
        collection.drop()
        collection.make(fields, shards=shards, replicas=replicas)
        held = first = 0
    for start, batch in rows.batches(first):
        collection.write(batch, replace=start < held)
        if progress is not None:
            progress(start + len(batch), total)
    collection.finish()
    if (found := collection.count()) != total:
        raise RetrievalError(
            f"Milvus at {collection.uri} holds {found} rows of {total} that it took",
            hint="see the server's log; the same command loads what is missing",
        )


def first_wrong(
    collection: MilvusCollection, store: PassageStore, start: int, stop: int, progress: Progress | None = None
) -> int | None:
    """The first of the rows that the collection lacks, or holds for another passage; None if it has them all."""
    for begin in range(start, stop, _READ):
        end = min(begin + _READ, stop)
        found = collection.hashes(begin, end)
        for row in range(begin, end):
            if found.get(row) != passage_hash(store[row]):
                return row
        if progress is not None:
            progress(end, stop)
    return None


def as_record(fields: Sequence[VectorField]) -> list[Mapping[str, Any]]:
    return [asdict(one) for one in fields]
