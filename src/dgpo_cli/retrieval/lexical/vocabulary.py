"""Words to columns of the postings, by the sorted hashes of all words, memory-mapped.

A dictionary of three million words takes seconds to read and half a gigabyte; this takes neither. Two words of a corpus
share a hash of 64 bits with a chance of n * n / 2**65 (one in four million for three million words) and would then be
taken for one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dgpo_cli.retrieval.index.mapped import open_array

HASHES, COLUMNS = "words.hash.npy", "words.column.npy"


def write_vocabulary(directory: Path, words: Iterable[str]) -> None:
    """`words` in the order of their columns."""
    hashes = _hashes(words)
    columns = np.argsort(hashes, kind="stable").astype(np.int32)
    np.save(directory / HASHES, hashes[columns])
    np.save(directory / COLUMNS, columns)


class Vocabulary:
    """Raises OSError or ValueError if the files cannot be opened."""

    def __init__(self, directory: Path) -> None:
        # Plain arrays over the mapped files, see bm25.py.
        mapped = [open_array(directory / name) for name in (HASHES, COLUMNS)]
        self._sorted, self._columns = (np.asarray(array) for array in mapped)
        if self._sorted.shape != self._columns.shape or self._sorted.dtype != np.uint64 or not len(self._sorted):
            raise ValueError(f"{HASHES} and {COLUMNS} do not belong together")

    def columns(self, words: Iterable[str]) -> list[int]:
        """The column of each word, -1 for a word that no passage holds."""
        hashes = _hashes(words)
        places = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        found: list[int] = np.where(self._sorted[places] == hashes, self._columns[places], -1).tolist()
        return found


def _hashes(words: Iterable[str]) -> np.ndarray:
    digests = b"".join([blake2b(word.encode(), digest_size=8).digest() for word in words])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)
