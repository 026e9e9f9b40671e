"""The record of one part of a dense index that is encoded in parts (parts.py), read and checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dgpo_cli.core import checksums, schema
from dgpo_cli.core.folders import recover_to_read
from dgpo_cli.core.locks import lock_beside
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.corpus.reader import CorpusReport
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.retrieval.index.store import PassageStore

FILE = "part.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number`, from 1, `of` so many. All but `number`, `rows` and `files` is the same in all parts."""

    number: int
    of: int
    rows: int  # passages in this part
    retriever: str
    settings: dict[str, Any]
    encoding: dict[str, Any]
    corpus: str
    corpus_digest: str
    passages: int  # in all parts
    skipped_by_kind: dict[str, int]
    problems: list[str]
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of those that hold its passages
    format: int = FORMAT

    @property
    def common(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("number", "rows", "files")}

    def write(self, directory: Path) -> None:
        checksums.write_sealed(directory / FILE, asdict(self))

    @property
    def report(self) -> CorpusReport:
        return CorpusReport(self.passages, self.problems, Counter(self.skipped_by_kind), digest=self.corpus_digest)


def parse_part(text: str) -> tuple[int, int]:
    """ "2/4" to (2, 4). Raises ConfigError."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"--shard {text!r} is no part", hint="write it like --shard 1/4, up to --shard 4/4")
    return int(number), int(of)


def read_part(directory: Path, *, whole: bool = False) -> Part:
    """Raises RetrievalError if there is no part, it is of another format, or a file is missing.

    With `whole` every file is compared with its hash.
    """
    recover_to_read(directory, lock_beside(directory))
    file = directory / FILE
    again = "build the part again: dgpo index CORPUS --retriever dense --shard i/n"
    if not file.is_file():
        raise RetrievalError(f"{directory} is no part of an index (it has no {FILE})", hint=again)
    record = schema.read_record(file, schema.record({"format": schema.whole(0)}), hint=again, error=RetrievalError)
    if record["format"] != FORMAT:
        raise RetrievalError(f"{directory} has part format {record['format']}, not {FORMAT}", hint=again)
    kind = schema.of(Part, number=schema.whole(1), of=schema.whole(1), rows=schema.whole(0))
    broken = checksums.is_broken(record)
    record.pop(checksums.SEAL, None)
    part = Part(**schema.check(record, kind, f"{file} is damaged", hint=again, error=RetrievalError))
    if broken:
        raise RetrievalError(f"{file} was changed after it was written (its SHA-256 differs)", hint=again)
    for name, digest in part.files.items() if whole else ():
        if not (directory / name).is_file():
            raise RetrievalError(f"{directory / name} is missing", hint=again)
        if checksums.file_digest(directory / name) != digest:
            raise RetrievalError(f"{directory / name} was changed after it was written", hint=again)
    if len(PassageStore(directory)) != part.rows:
        raise RetrievalError(f"{directory} does not hold the {part.rows} passages of its {FILE}", hint=again)
    for start in range(0, part.rows, vectors.SHARD):
        shard = vectors.shard_file(directory, start)
        if fault := vectors.shard_fault(shard, whole=whole):
            raise RetrievalError(f"{shard} {fault}", hint=again)
    return part


def existing_part(out: Path, overwrite: bool) -> Part | None:
    """The part at `out`; None if there is none, or one that is not whole and is to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / FILE).is_file():
        raise ConfigError(f"{out} exists and is no part of an index", hint="give another --out, or move it away")
    try:
        return read_part(out)
    except RetrievalError:
        if overwrite:
            return None
        raise
