"""Corpus files: one JSON object a line, `{"id", "contents"}` (Search-R1, FlashRAG) or `{"id", "title", "text"}`.

Plain or .gz, UTF-8. Files stream: nothing but the ids is remembered (retrieval/identities.py).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import parse_line
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.identities import SeenIds

KEPT_PROBLEMS = 10
_REPORT_EVERY = 2_000  # passages
_SHOWN = 60  # characters of an id in a message


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


def read_corpus(
    path: Path, report: CorpusReport, *, strict: bool = False, progress: Progress | None = None
) -> Iterator[Passage]:
    """Passages in file order. Bad lines are counted in `report`, or raise InputError with `strict`.

    Raises InputError when the file cannot be read or holds no usable passage. `progress` gets the passages so far and
    an estimate of all, from how much of the file is read.
    """
    digest = hashlib.sha256()
    seen = SeenIds()
    for number, line, share in _lines(path):
        digest.update(line)
        if not line.strip():
            continue
        try:
            passage = _passage(parse_line(line, f"line {number}"), f"line {number}", seen)
        except InputError as error:
            if strict:
                raise InputError(f"{path}: {error.message}", hint="repair the line, or leave --strict out") from error
            report.skip(error.message)
            continue
        report.passages += 1
        if progress is not None and report.passages % _REPORT_EVERY == 0:
            progress(report.passages, max(report.passages, round(report.passages / share)))
        yield passage
    if not report.passages:
        first = f"; the first: {report.problems[0]}" if report.problems else ""
        raise InputError(
            f"{path} holds no usable passage ({report.skipped} bad lines{first})",
            hint='write lines like {"id": "0", "contents": "\\"Title\\"\\ntext"}, in UTF-8',
        )
    if progress is not None:
        progress(report.passages, report.passages)
    report.digest = digest.hexdigest()


def corpus_digest(path: Path) -> str:
    """SHA-256 of the uncompressed bytes. Raises InputError when the file cannot be read."""
    digest = hashlib.sha256()
    for _, line, _ in _lines(path):
        digest.update(line)
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, bytes, float]]:
    """(line number, line, share of the file read so far)."""
    try:
        size = max(1, path.stat().st_size)
        with open(path, "rb") as raw:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
            share = 0.0
            for number, line in enumerate(stream, start=1):
                if number % _REPORT_EVERY == 1:
                    share = min(1.0, max(1, raw.tell()) / size)
                yield number, line, share
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: {reason}", hint="give a corpus file, .jsonl or .jsonl.gz") from error


def _passage(row: dict[str, Any], place: str, seen: SeenIds) -> Passage:
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise InputError(f"{place}: no id" if identity is None else f"{place}: the id is {_short(identity)}")
    if isinstance(row.get("contents"), str):
        passage = Passage(str(identity), row["contents"])
    elif isinstance(row.get("text"), str) and isinstance(row.get("title", ""), str):
        # A line end in a title would make the rest of it part of the text.
        passage = Passage.from_title(str(identity), " ".join(row.get("title", "").split()), row["text"])
    else:
        raise InputError(f"{place}: neither contents nor title and text")
    if not passage.text.strip() and not passage.title.strip():
        raise InputError(f"{place}: empty passage")
    if not seen.add(passage.id):
        raise InputError(f"{place}: id {_short(passage.id)} occurs twice")
    return passage


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
