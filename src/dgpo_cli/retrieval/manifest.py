"""What an index says about itself, and the check of that when it is opened."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core.records import write_atomic
from dgpo_cli.errors import RetrievalError

FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    retriever: str
    settings: dict[str, Any]
    corpus: str  # path that it was built from
    corpus_digest: str  # SHA-256 of the corpus, uncompressed
    passages: int
    skipped: int
    problems: tuple[str, ...]  # the first bad lines
    seconds: float
    versions: dict[str, str]
    files: dict[str, int]  # size in bytes of every file of the index
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def digest(self) -> str:
        """Identity of what a search returns: corpus, engine and its settings."""
        text = json.dumps([self.corpus_digest, self.retriever, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, directory: Path) -> None:
        write_atomic(directory / FILE, json.dumps(asdict(self), indent=1) + "\n")


def file_sizes(directory: Path) -> dict[str, int]:
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != FILE)
    return {str(p.relative_to(directory)): p.stat().st_size for p in files}


def read_manifest(directory: Path) -> Manifest:
    """Raises RetrievalError if there is no index, it is of another format, or a file is missing or cut short."""
    file = directory / FILE
    if not file.is_file():
        raise RetrievalError(f"{directory} is not an index", hint="build one with `dgpo index CORPUS`, or give --index DIR")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise RetrievalError(
                f"{directory} has index format {record['format']}, this version reads {FORMAT}", hint="build the index again"
            )
        manifest = Manifest(**record | {"problems": tuple(record["problems"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RetrievalError(f"{file} is damaged: {error}", hint="build the index again") from error
    for name, size in manifest.files.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, {size} were written"
            raise RetrievalError(f"{path} {state}", hint="build the index again: dgpo index CORPUS --overwrite")
    return manifest
