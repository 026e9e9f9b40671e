"""Corpus files: one JSON object a line, `{"id", "contents"}` (Search-R1, FlashRAG) or `{"id", "title", "text"}`."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo_cli.core.records import parse_line
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError

KEPT_PROBLEMS = 10


@dataclass(slots=True)
class CorpusReport:
    """What a pass over a corpus found. `problems` holds the first ten bad lines."""

    passages: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    digest: str = ""  # SHA-256 of the uncompressed bytes, set at the end

    def skip(self, problem: str) -> None:
        self.skipped += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)


def read_corpus(path: Path, report: CorpusReport, *, strict: bool = False) -> Iterator[Passage]:
    """Passages in file order. Bad lines are counted in `report`, or raise InputError with `strict`.

    Raises InputError when the file cannot be read or holds no usable passage.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if not line.strip():
                    continue
                try:
                    passage = _passage(parse_line(line, f"line {number}"), number, seen)
                except InputError as error:
                    if strict:
                        raise InputError(f"{path}: {error.message}", hint="repair the line, or leave --strict out") from error
                    report.skip(error.message)
                    continue
                report.passages += 1
                yield passage
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: {reason}", hint="give a corpus file, .jsonl or .jsonl.gz") from error
    if not report.passages:
        first = f", first problem: {report.problems[0]}" if report.problems else ""
        raise InputError(
            f"{path} holds no usable passage ({report.skipped} lines skipped{first})",
            hint='write lines like {"id": "0", "contents": "\\"Title\\"\\ntext"}',
        )
    report.digest = digest.hexdigest()


def _passage(row: dict[str, Any], number: int, seen: set[int]) -> Passage:
    if "id" not in row:
        raise InputError(f"line {number}: no id")
    identity = str(row["id"])
    if isinstance(row.get("contents"), str):
        passage = Passage(identity, row["contents"])
    elif isinstance(row.get("text"), str) and isinstance(row.get("title", ""), str):
        passage = Passage.from_title(identity, row.get("title", ""), row["text"])
    else:
        raise InputError(f"line {number}: neither contents nor title and text")
    if not passage.text.strip() and not passage.title.strip():
        raise InputError(f"line {number}: empty passage")
    key = hash(identity)  # 8 bytes an id instead of the string; a false match in 64 bits is not to be expected
    if key in seen:
        raise InputError(f"line {number}: id {identity!r} occurs twice")
    seen.add(key)
    return passage
