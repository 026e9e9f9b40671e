"""The record of the files of an index's folder, so that an update reads only those that were added or changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from dgpo_cli import __version__
from dgpo_cli.core import schema
from dgpo_cli.core.records import read_jsonl, write_jsonl_atomic
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import RetrievalError

FILE = "files.jsonl"
_LIBRARIES = ("lxml", "pypdf", "mammoth", "python-pptx", "openpyxl")  # what they make of a file may change


@dataclass(frozen=True, slots=True)
class KnownFile:
    name: str  # its path inside the folder
    sha256: str  # of its bytes
    passages: int
    problem: str  # why it gave none, else empty


class StoredPassages(Protocol):
    """Passages of an index, by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Passage: ...


class KnownFiles:
    """Files of an earlier reading, which stand for what they held then."""

    def __init__(self, files: Sequence[KnownFile], rows: StoredPassages) -> None:
        ends = accumulate(file.passages for file in files)
        self._files = {file.name: (file, end - file.passages) for file, end in zip(files, ends, strict=True)}
        self._rows = rows
        self.given = 0  # files that were not read again

    def of(self, name: str, sha256: str) -> tuple[KnownFile, list[Passage]] | None:
        """What a file gave, or None where it was not there, or not as it is."""
        found = self._files.get(name)
        if found is None or found[0].sha256 != sha256:
            return None
        file, start = found
        if start + file.passages > len(self._rows):
            return None
        passages = [self._rows[row] for row in range(start, start + file.passages)]
        # Of two files whose names read alike the second one's passages are left out of an index, which moves the rest.
        named = all(passage.id == passage_id(name, number) for number, passage in enumerate(passages, start=1))
        if not named:
            return None
        self.given += 1
        return file, passages


def passage_id(name: str, number: int) -> str:
    return f"{name}#{number}"


def write_known(directory: Path, files: Iterable[KnownFile]) -> None:
    """Beside the passages, in the order of these."""
    write_jsonl_atomic(directory / FILE, [{"readers": _readers()}, *map(asdict, files)])


def read_known(directory: Path, rows: StoredPassages) -> KnownFiles | None:
    """None where the index does not tell, or where other versions of the libraries read the files."""
    path = directory / FILE
    if not path.is_file():
        return None
    lines = [row for _, row in read_jsonl(path)]
    if not lines or lines[0] != {"readers": _readers()}:
        return None
    hint, kind = "build the index again with --overwrite", schema.of(KnownFile, passages=schema.whole(0))
    files = [KnownFile(**schema.check(row, kind, f"{path}", hint=hint, error=RetrievalError)) for row in lines[1:]]
    return KnownFiles(files, rows)


def _readers() -> dict[str, str]:
    return {"dgpo-cli": __version__} | {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
