"""BM25's score of every word in every passage, as the columns that bm25s searches, in memory that does not grow.

bm25s itself wants all word ids of a corpus in memory, several times over. Here a first pass counts, a chunk of passages
at a time, into files; a second pass turns counts into scores and puts each where its column on disk goes on. The result
is what bm25s builds, up to the last bits of a score. In memory are the vocabulary, a few numbers per word and two per
passage.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from dgpo_cli.retrieval.index.mapped import new_array
from dgpo_cli.retrieval.lexical.words import WordTokenizer

Variant = Literal["lucene", "robertson", "atire"]
CHUNK = 1 << 15  # passages counted at once
_WORDS, _COUNTS, _DATA, _INDICES = "words.raw", "counts.raw", "data.npy", "indices.npy"


@dataclass(frozen=True, slots=True)
class Postings:
    """Column w of `data` and `indices` is from `indptr[w]` to `indptr[w + 1]`: scores, and rows in ascending order."""

    data: np.ndarray  # [P] float32, on disk
    indices: np.ndarray  # [P] int32, on disk
    indptr: np.ndarray  # [V + 1] int64
    vocabulary: dict[str, int]  # in order of first appearance
    rows: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Results of a first pass over the passages; the counts of each word in each passage are in files."""

    directory: Path
    vocabulary: dict[str, int]
    frequencies: np.ndarray  # [V] passages that hold the word
    lengths: np.ndarray  # [N] words of a passage
    distinct: np.ndarray  # [N] different words of a passage


def build_postings(
    directory: Path, texts: Iterable[str], words: WordTokenizer, *, variant: Variant, k1: float, b: float
) -> Postings:
    """`directory` holds the files that the result is mapped to, and may be deleted once it is no longer needed."""
    counts = count_words(directory, texts, words)
    rows, total = len(counts.lengths), int(counts.frequencies.sum())
    indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts.frequencies)])
    shape = (max(1, total),)  # a file of no bytes cannot be mapped
    data = new_array(directory / _DATA, np.float32, shape)[:total]
    indices = new_array(directory / _INDICES, np.int32, shape)[:total]
    ends = indptr[:-1].copy()  # where each column goes on
    for held, word, scores in word_scores(counts, variant=variant, k1=k1, b=b):
        order = np.argsort(word, kind="stable")
        found, first, number = np.unique(word[order], return_index=True, return_counts=True)
        places = np.repeat(ends[found] - first, number) + np.arange(len(order))
        data[places], indices[places] = scores[order], held[order]
        ends[found] += number
    return Postings(data, indices, indptr, counts.vocabulary, rows)


def count_words(directory: Path, texts: Iterable[str], words: WordTokenizer) -> Counts:
    """Writes its files into `directory`, which it makes."""
    directory.mkdir()
    with open(directory / _WORDS, "wb") as word_file, open(directory / _COUNTS, "wb") as count_file:
        return _count(directory, texts, words, word_file, count_file)


def word_scores(
    counts: Counts, *, variant: Variant, k1: float, b: float, first: int = 0, size: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For `size` passages at a time, from passage `first` on: rows, words and scores, in order of rows."""
    idf = _idf(variant, counts.frequencies, len(counts.lengths))
    mean = max(1e-9, counts.lengths.mean()) if len(counts.lengths) else 1.0
    passed = int(counts.distinct[:first].sum()) * np.dtype(np.uint32).itemsize
    with open(counts.directory / _WORDS, "rb") as word_file, open(counts.directory / _COUNTS, "rb") as count_file:
        word_file.seek(passed)
        count_file.seek(passed)
        for start in range(first, len(counts.lengths), size):
            distinct = counts.distinct[start : start + size]
            held = np.repeat(np.arange(start, start + len(distinct)), distinct)
            word = np.fromfile(word_file, dtype=np.uint32, count=len(held)).astype(np.int64)
            count = np.fromfile(count_file, dtype=np.uint32, count=len(held)).astype(np.float64)
            norm = k1 * (1 - b + b * counts.lengths[held] / mean)
            gain = k1 + 1 if variant == "atire" else 1
            yield held, word, idf[word] * gain * count / (count + norm)


def _count(
    directory: Path, texts: Iterable[str], words: WordTokenizer, word_file: BinaryIO, count_file: BinaryIO
) -> Counts:
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__  # a new word gets the next number
    frequencies = np.zeros(0, dtype=np.int64)
    lengths, distinct = [], []
    remaining = iter(texts)
    while True:
        ids, ends = array("I"), [0]
        for text in islice(remaining, CHUNK):
            ids.extend(map(vocabulary.__getitem__, words.words(text)))
            ends.append(len(ids))
        if len(ends) == 1:
            break
        sizes = np.diff(ends)
        rows = np.repeat(np.arange(len(sizes)), sizes)
        keys, counts = np.unique(rows << 32 | np.frombuffer(ids, dtype=np.uint32), return_counts=True)
        word, row = keys & 0xFFFFFFFF, keys >> 32
        word.astype(np.uint32).tofile(word_file)
        counts.astype(np.uint32).tofile(count_file)
        more = np.bincount(word, minlength=len(vocabulary))
        more[: len(frequencies)] += frequencies
        frequencies = more
        lengths.append(sizes.astype(np.uint32))
        distinct.append(np.bincount(row, minlength=len(sizes)).astype(np.uint32))
    none = np.zeros(0, dtype=np.uint32)
    return Counts(
        directory, vocabulary, frequencies, np.concatenate([none, *lengths]), np.concatenate([none, *distinct])
    )


def _idf(variant: Variant, frequencies: np.ndarray, rows: int) -> np.ndarray:
    if variant == "atire":
        return np.asarray(np.log(rows / np.maximum(frequencies, 1)))
    odds = (rows - frequencies + 0.5) / (frequencies + 0.5)
    # Robertson's is negative for a word in most passages; bm25s takes zero then.
    return np.asarray(np.log1p(odds) if variant == "lucene" else np.log(np.maximum(odds, 1)))
