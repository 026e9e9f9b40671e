"""Passages on disk, memory-mapped: one file of UTF-8 JSON lines and one array of their offsets."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import RetrievalError

PASSAGES, OFFSETS = "passages.jsonl", "offsets.npy"


class StoreWriter:
    """Writes passages one by one; memory does not grow with their text."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stream = open(directory / PASSAGES, "wb")
        self._offsets = array("q", [0])

    def add(self, passage: Passage) -> None:
        line = json.dumps([passage.id, passage.contents], ensure_ascii=False).encode() + b"\n"
        self._stream.write(line)
        self._offsets.append(self._offsets[-1] + len(line))

    def close(self) -> None:
        self._stream.close()
        np.save(self._directory / OFFSETS, np.array(self._offsets, dtype=np.int64), allow_pickle=False)


class PassageStore:
    """Row i is passage i of the index. Raises RetrievalError if the files do not fit together."""

    def __init__(self, directory: Path) -> None:
        try:
            self._offsets = np.load(directory / OFFSETS, mmap_mode="r", allow_pickle=False)
            self._stream = open(directory / PASSAGES, "rb")
            self._bytes = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise RetrievalError(f"{directory}: passages cannot be opened: {error}", hint="build the index again") from error
        if len(self._bytes) != int(self._offsets[-1]):
            raise RetrievalError(
                f"{directory / PASSAGES} has {len(self._bytes)} bytes, {int(self._offsets[-1])} were written",
                hint="build the index again: dgpo index CORPUS --overwrite",
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        identity, contents = json.loads(self._bytes[self._offsets[row] : self._offsets[row + 1]])
        return Passage(identity, contents)

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))
