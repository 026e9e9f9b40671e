"""Sources of passages: JSONL, Parquet and data sets of the hub. A folder of files is in folder.py.

A source yields what it finds, good or bad, row by row; corpus.py counts and judges. Rows have an `id` (or BEIR's `_id`)
and either `contents` (Search-R1, FlashRAG) or `text` with an optional `title`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dgpo_cli.core.compression import ERRORS, decompressing
from dgpo_cli.core.hub_rows import hub_rows
from dgpo_cli.core.records import parse_line
from dgpo_cli.core.types import Passage
from dgpo_cli.core.untrusted import LONGEST_PASSAGE, lines, open_file, overlong
from dgpo_cli.errors import InputError, first_line, reason

FIELDS = ("id", "_id", "contents", "title", "text")
HINT = "give a corpus: .jsonl or .parquet, .jsonl.gz, .jsonl.zst, hf:REPO:SPLIT, or a folder of texts"
LONGEST = LONGEST_PASSAGE
_BATCH = 1_000  # Parquet rows read at once
_SLICE = 50  # of them made into Python objects at once
_LARGE_COLUMN = 1 << 26  # bytes of a column of a row group, unpacked
_PACKED = 200  # times smaller: text packs ten times, a bomb 30,000
_STEP = 2_000  # lines between two looks at how far the file is read
_SHOWN = 60  # characters of an id in a message


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A passage, or why there is none: `problem` reads "kind (details)", and kinds are counted."""

    place: str  # "line 3", "row 3", "notes/a.md"
    share: float  # of the source read so far, above 0, up to 1
    passage: Passage | None = None
    problem: str = ""


class CorpusSource(Protocol):
    def read(self, digest: Digest) -> Iterator[Found]:
        """The items in order; `digest` gets all that they depend on. Raises InputError if it cannot be read."""
        ...

    def hash(self, digest: Digest) -> None:
        """Show `digest` what `read` would, without making passages."""
        ...


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One JSON object a line, UTF-8; plain, .gz or .zst. The digest is that of the uncompressed bytes."""

    path: Path

    def read(self, digest: Digest) -> Iterator[Found]:
        for number, line, share in self._lines(digest):
            if line is None:
                yield Found(f"line {number}", share, problem=overlong())
            elif line.strip():
                yield _line(line, f"line {number}", share)

    def hash(self, digest: Digest) -> None:
        for _ in self._lines(digest):
            pass

    def _lines(self, digest: Digest) -> Iterator[tuple[int, bytes | None, float]]:
        try:
            size = max(1, self.path.stat().st_size)
            with open_file(self.path) as raw:
                share = 0.0
                for number, line in enumerate(lines(decompressing(raw, self.path), seen=digest.update), start=1):
                    if number % _STEP == 1:
                        share = min(1.0, max(1, raw.tell()) / size)
                    yield number, line, share
        except ERRORS as error:
            raise InputError(f"{self.path}: {reason(error)}", hint=HINT) from error


@dataclass(frozen=True, slots=True)
class Parquet:
    """The columns of FIELDS that the file has, a batch of rows at a time. The digest is that of the file."""

    path: Path

    def read(self, digest: Digest) -> Iterator[Found]:
        import pyarrow
        from pyarrow.parquet import ParquetFile, read_metadata

        self.hash(digest)
        try:
            metadata = read_metadata(self.path)
            columns = [name for name in FIELDS if name in metadata.schema.to_arrow_schema().names]
            paths = {metadata.schema.column(number).path for number in range(metadata.num_columns)}
            shared = [name for name in columns if name in paths]  # a text that many rows share is in memory once
            with ParquetFile(self.path, metadata=metadata, read_dictionary=shared, memory_map=True) as file:
                number, total = 0, max(1, file.metadata.num_rows)
                for group in range(file.num_row_groups):
                    described = file.metadata.row_group(group)
                    if problem := _oversized(described, columns):
                        first, number = number + 1, number + described.num_rows
                        yield Found(f"rows {first} to {number}", min(1.0, number / total), problem=problem)
                        continue
                    for batch in file.iter_batches(batch_size=_BATCH, columns=columns, row_groups=[group]):
                        for start in range(0, batch.num_rows, _SLICE):
                            for row in batch.slice(start, _SLICE).to_pylist():
                                number += 1
                                yield found_in(row, f"row {number}", min(1.0, number / total))
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{self.path}: {first_line(error)}", hint=HINT) from error

    def hash(self, digest: Digest) -> None:
        try:
            with open_file(self.path) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}", hint=HINT) from error


def _oversized(group: Any, columns: Collection[str]) -> str:
    """Why no row of a row group is read: its texts, which the library unpacks whole, are none of passages."""
    for number in range(group.num_columns):
        column = group.column(number)
        name, size, packed = column.path_in_schema, column.total_uncompressed_size, column.total_compressed_size
        if name not in columns or size <= _LARGE_COLUMN:
            continue
        if size > 4 * LONGEST * max(1, group.num_rows) or size > _PACKED * max(1, packed):
            return f"oversized rows ({size:,} bytes of {name}, packed to {packed:,})"
    return ""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """`hf:REPO`, `hf:REPO:SPLIT` or `hf:REPO:CONFIG:SPLIT`, memory-mapped from the hub's cache; no code of it is run.

    The digest is that of its rows.
    """

    location: str

    def read(self, digest: Digest) -> Iterator[Found]:
        rows = self._rows()
        for number, row in enumerate(rows, start=1):
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
            yield found_in(row, f"row {number}", number / len(rows))

    def hash(self, digest: Digest) -> None:
        for row in self._rows():
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")

    def _rows(self) -> Any:
        loaded = hub_rows(self.location)
        return loaded.select_columns([name for name in FIELDS if name in loaded.column_names])


def found_in(row: Mapping[str, Any], place: str, share: float) -> Found:
    """The passage of a row, or what is wrong with the row."""
    identity = row["_id"] if row.get("id") is None and "_id" in row else row.get("id")
    if identity is None:
        return Found(place, share, problem="no id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        return Found(place, share, problem=f"bad id ({short(identity)})")
    contents, title, text = row.get("contents"), row.get("title") or "", row.get("text")
    if isinstance(contents, str):
        passage = Passage(str(identity), contents)
    elif isinstance(text, str) and isinstance(title, str):
        # A line end in a title would make the rest of it part of the text.
        passage = Passage.from_title(str(identity), " ".join(title.split()), text)
    else:
        return Found(place, share, problem="neither contents nor title and text")
    if not passage.text.strip() and not passage.title.strip():
        return Found(place, share, problem="empty passage")
    if len(passage.contents) > LONGEST:
        size = f"{len(passage.contents):,} characters, {LONGEST:,} at most"
        return Found(place, share, problem=f"oversized passage ({size})")
    return Found(place, share, passage)


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _line(line: bytes, place: str, share: float) -> Found:
    try:
        row = parse_line(line, place)
    except InputError as error:
        return Found(place, share, problem=error.message.removeprefix(f"{place}: "))
    return found_in(row, place, share)
