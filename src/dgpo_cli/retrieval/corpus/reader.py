"""A corpus as a stream of passages with ids of their own, and an account of what in it could not be used.

Sources stream: nothing but the ids is remembered (retrieval/corpus/seen_ids.py).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dgpo_cli.core.compression import plain_name
from dgpo_cli.core.hub_rows import PREFIX
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.folder import Folder
from dgpo_cli.retrieval.corpus.known import KnownFile, KnownFiles
from dgpo_cli.retrieval.corpus.seen_ids import SeenIds
from dgpo_cli.retrieval.corpus.sources import HINT, CorpusSource, Found, HubDataset, JsonLines, Parquet, short

KEPT_PROBLEMS = 10
_REPORT_EVERY = 2_000  # passages


@dataclass(slots=True)
class CorpusReport:
    """Results of a pass over a corpus. `problems` holds the first ten lines, rows or files that gave no passage."""

    passages: int = 0
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # how many of each kind of problem
    gaps: array[int] = field(default_factory=lambda: array("q"))  # per problem, how many passages stand before it
    files: list[KnownFile] = field(default_factory=list)  # of a folder, those that could be opened; set at the end
    digest: str = ""  # SHA-256 that changes with anything that the passages depend on; set at the end

    @property
    def skipped(self) -> int:
        return self.kinds.total()

    def skip(self, place: str, problem: str) -> None:
        self.kinds[problem.partition(" (")[0]] += 1
        self.gaps.append(self.passages)
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(f"{place}: {problem}")


def read_corpus(
    location: Path | str,
    report: CorpusReport,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    known: KnownFiles | None = None,
) -> Iterator[Passage]:
    """Passages in the order of the source. What gives none is counted in `report`, or raises InputError with `strict`.

    Raises InputError when the source cannot be read or holds no usable passage. `progress` gets the passages so far and
    an estimate of all, from how much of the source is read. A folder's files that are `known` are not read again.
    """
    digest = hashlib.sha256()
    seen = SeenIds()
    source = _source(location, known)
    for found in source.read(digest):
        problem = _problem(found, seen)
        if problem and strict:
            raise InputError(f"{location}: {found.place}: {problem}", hint="repair or remove it, or leave --strict out")
        if problem or found.passage is None:
            report.skip(found.place, problem)
            continue
        report.passages += 1
        if progress is not None and report.passages % _REPORT_EVERY == 0:
            progress(report.passages, max(report.passages, round(report.passages / found.share)))
        yield found.passage
    if not report.passages:
        first = f"; the first: {report.problems[0]}" if report.problems else ""
        raise InputError(
            f"{location} holds no usable passage ({report.skipped} skipped{first})",
            hint='write lines like {"id": "0", "contents": "\\"Title\\"\\ntext"} in UTF-8, or give a folder of texts',
        )
    if progress is not None:
        progress(report.passages, report.passages)
    if isinstance(source, Folder):
        report.files = source.files
    report.digest = digest.hexdigest()


def require_corpus(location: str) -> None:
    """Cheap. Raises InputError where no file, folder or data set can be meant, or a file or folder has no passage."""
    if location.startswith(PREFIX):
        return
    if not Path(location).exists():
        raise InputError(f"{location}: No such file or directory", hint=HINT)
    next(read_corpus(location, CorpusReport()), None)


def corpus_digest(location: Path | str) -> str:
    """The digest that reading would report. Raises InputError when the source cannot be read."""
    digest = hashlib.sha256()
    _source(location).hash(digest)
    return digest.hexdigest()


def corpus_name(location: str) -> str:
    """A name for the index of a corpus: that of its file, folder or data set."""
    if location.startswith(PREFIX):
        return re.sub(r"[^\w.-]+", "-", location.removeprefix(PREFIX).partition("/")[2] or location[3:])
    path = Path(location).resolve()
    if path.is_dir():
        return path.name or "root"
    return plain_name(path).removesuffix(".jsonl").removesuffix(".parquet")


def recorded_location(location: Path | str) -> str:
    """A location as a manifest keeps it: independent of the folder where the command was given."""
    return str(location) if str(location).startswith(PREFIX) else str(Path(location).resolve())


def _source(location: Path | str, known: KnownFiles | None = None) -> CorpusSource:
    if str(location).startswith(PREFIX):
        return HubDataset(str(location))
    path = Path(location)
    if path.is_dir():
        return Folder(path, known)
    return Parquet(path) if path.suffix == ".parquet" else JsonLines(path)


def _problem(found: Found, seen: SeenIds) -> str:
    if found.passage is not None and not seen.add(found.passage.id):
        return f"duplicate id ({short(found.passage.id)})"
    return found.problem
