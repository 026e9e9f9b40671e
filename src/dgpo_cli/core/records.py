"""JSONL on disk: reading with errors that name the line, atomic writing, and append-only files that survive a kill."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from dgpo_cli.core.compression import ERRORS, decompressing
from dgpo_cli.core.untrusted import lines, open_file, overlong, parse_json
from dgpo_cli.errors import InputError, reason

Made = TypeVar("Made")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a UTF-8 JSONL file, plain, .gz or .zst. Raises InputError naming file and line."""
    try:
        with open_file(path) as raw:
            for number, line in enumerate(lines(decompressing(raw, path)), start=1):
                if line is None:
                    raise InputError(f"{path}:{number}: {overlong()}", hint="write one JSON object per line")
                if line.strip():
                    yield number, parse_line(line, f"{path}:{number}")
    except ERRORS as error:
        raise InputError(f"{path}: {reason(error)}", hint="give a readable JSONL file, plain, .gz or .zst") from error


def parse_line(line: bytes, place: str) -> dict[str, Any]:
    """One JSON object, a byte order mark before it allowed. Raises InputError naming the place."""
    row = parse_json(line, place, "write one JSON object per line")
    if not isinstance(row, dict):
        raise InputError(f"{place}: a {type(row).__name__}, not an object", hint="write one JSON object per line")
    return row


def dump_line(row: Mapping[str, Any]) -> str:
    return to_json(row) + "\n"


def to_json(value: object, *, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """JSON as its standard has it, which knows no NaN and no infinity: None stands for them.

    A record is an object of its fields, a path its text. Raises TypeError for what else JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=ensure_ascii, indent=indent, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def as_read(value: object) -> Any:
    """What a reader of the JSON of `value` gets: lists for tuples, and a text for every key."""
    return json.loads(to_json(value))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return _finite(asdict(value))
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def write_atomic(path: Path, content: str | bytes) -> None:
    """The file holds either what it held before or all of `content`, also after a kill or on a full disk."""
    with _replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with _replacing(path) as stream:
        for row in rows:
            stream.write(dump_line(row).encode())


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at the end, and vanishes on an error.

    A link stays, and what it leads to is replaced. Raises OSError for anything but a file: renaming onto a device or a
    pipe, which root may do, would put a file in its place for every program of the machine.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if os.path.lexists(path) and not path.is_file():
        raise OSError(errno.ENOTSUP, "a pipe, a device or a ring of links, not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed writer left of its last line."""
    with open(path, "rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        end, step = size, 1 << 16
        while end > 0:
            start = max(0, end - step)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            stream.truncate(end)


class RecordFile:
    """Append-only JSONL whose first line is a header {"schema", "version", ...meta} and whose rows have unique keys.

    Opening drops a torn last line and reads the keys. A file with another header is refused (InputError), so records
    of different settings never mix.
    """

    version = 1

    def __init__(self, path: Path, *, key: str, schema: str, meta: Mapping[str, Any] | None = None) -> None:
        self.path, self._key, self._what = path, key, f"a record of {schema}"
        self.header = {"schema": schema, "version": self.version} | dict(meta or {})
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_torn_line(path)
        first = next(read_jsonl(path), None) if path.exists() else None
        if first is not None:
            found = first[1]
            if found != as_read(self.header):
                differing = sorted(k for k in found.keys() | self.header.keys() if found.get(k) != self.header.get(k))
                raise InputError(
                    f"{path} was written with other settings ({', '.join(differing)})",
                    hint="write elsewhere, or use --fresh",
                )
        else:
            write_atomic(path, dump_line(self.header))
        self.keys: set[str] = set()
        for number, row in self._numbered():
            if not isinstance(row.get(key), str) or row[key] in self.keys:
                raise InputError(
                    f"{path}:{number}: a row without a {key} of its own", hint=f"remove line {number}, or use --fresh"
                )
            self.keys.add(row[key])
        self._stream: BinaryIO = open(path, "ab")  # noqa: SIM115 - closed by close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows in the order in which they were written."""
        return (row for _, row in self._numbered())

    def made(self, make: Callable[[dict[str, Any]], Made]) -> Iterator[Made]:
        """What `make` makes of each row. Raises InputError naming the line where it raises ValueError."""
        for number, row in self._numbered():
            try:
                yield make(row)
            except ValueError as error:
                raise InputError(
                    f"{self.path}:{number}: not {self._what}: {error}", hint=f"remove line {number}, or use --fresh"
                ) from error

    def _numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return islice(read_jsonl(self.path), 1, None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row at once. Raises ValueError for a key that is there already."""
        if row[self._key] in self.keys:
            raise ValueError(f"{self.path} already holds {row[self._key]!r}")
        self._stream.write(dump_line(row).encode())
        self._stream.flush()
        self.keys.add(row[self._key])

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path, schema: str) -> tuple[dict[str, Any], Iterator[tuple[int, dict[str, Any]]]]:
    """Header and (line number, row) of a record file of anybody's settings. Raises InputError for another schema."""
    lines = read_jsonl(path)
    header = next(lines, (0, {}))[1]
    if header.get("schema") != schema or header.get("version") != RecordFile.version:
        raise InputError(
            f"{path} is not a file of {schema}: its header says {header.get('schema')!r}, "
            f"version {header.get('version')}",
            hint=f"give a file of {schema} that this version of dgpo wrote",
        )
    return header, lines
