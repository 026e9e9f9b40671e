"""Passages on disk, memory-mapped: one file of UTF-8 JSON lines and one array of where each line begins."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.schema import require, text
from dgpo_cli.core.types import Passage
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError, RetrievalError
from dgpo_cli.retrieval.index.mapped import new_array, open_array

PASSAGES, OFFSETS = "passages.jsonl", "offsets.npy"
SHARDS = "shards"  # folder of an unfinished index whose content took long to compute, see vectors.py
_RAW_OFFSETS = "offsets.raw"
_BUFFERED = 1 << 16

_TEXT = text()


class StoreWriter:
    """Writes passages one by one; a context manager, and complete when it is left without an error.

    Text and offsets go to disk as they come, so memory does not grow with the corpus.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets = array("q", [0])
        self._end = 0
        self._rows = 0

    def __enter__(self) -> StoreWriter:
        self._files = ExitStack()
        self._lines = self._files.enter_context(open(self._directory / PASSAGES, "wb"))
        self._raw = self._files.enter_context(open(self._directory / _RAW_OFFSETS, "wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush_offsets()
        self._files.close()
        if error is None:
            self._write_offsets()

    def add(self, passage: Passage) -> None:
        line = json.dumps([passage.id, passage.contents], ensure_ascii=False).encode() + b"\n"
        self._lines.write(line)
        self._end += len(line)
        self._rows += 1
        self._offsets.append(self._end)
        if len(self._offsets) >= _BUFFERED:
            self._flush_offsets()

    def _flush_offsets(self) -> None:
        self._offsets.tofile(self._raw)
        del self._offsets[:]

    def _write_offsets(self) -> None:
        raw = self._directory / _RAW_OFFSETS
        shape = (self._rows + 1,)
        offsets = new_array(self._directory / OFFSETS, np.int64, shape)
        offsets[:] = np.memmap(raw, dtype=np.int64, mode="r", shape=shape)
        raw.unlink()


class PassageStore:
    """Row i is passage i of the index. Raises RetrievalError if the files do not fit together."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / PASSAGES
        try:
            self._offsets = open_array(directory / OFFSETS)
            with open(self._file, "rb") as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            pass_on(error)
            raise self._damaged(f"and {OFFSETS} cannot be opened: {error}") from error
        if self._offsets.dtype != np.int64 or self._offsets.ndim != 1 or not len(self._offsets):
            raise self._damaged(f"has offsets of another form: {self._offsets.dtype} {self._offsets.shape}")
        if len(self._bytes) != int(self._offsets[-1]):
            raise self._damaged(f"has {len(self._bytes)} bytes, {int(self._offsets[-1])} were written")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        try:
            start, end = int(self._offsets[row]), int(self._offsets[row + 1])
            identity, contents = parse_json(self._bytes[start:end], "its JSON")
            return Passage(require(identity, _TEXT), require(contents, _TEXT))
        except (InputError, ValueError, TypeError) as error:
            raise self._damaged(f"is damaged at row {row}: {error}") from error

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))

    def _damaged(self, what: str) -> RetrievalError:
        return RetrievalError(f"{self._file} {what}", hint="build the index again: dgpo index CORPUS --overwrite")
