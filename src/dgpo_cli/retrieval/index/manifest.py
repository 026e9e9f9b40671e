"""The record of an index, which is checked when the index is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dgpo_cli.core import checksums, schema, shell
from dgpo_cli.core.checksums import READ_WHOLE, file_digest, sample_digest
from dgpo_cli.core.config import flat
from dgpo_cli.core.folders import recover_to_read
from dgpo_cli.core.locks import lock_beside
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.registry import RETRIEVERS, retriever_class

FILE = "manifest.json"
FORMAT = 3
_UNCHANGED_SINCE = {"dense": 2, "rank-bm25": 2, "milvus": 2}  # formats, of retrievers whose files are as they were

_ANY_FORMAT = schema.record({"format": schema.whole(0), "retriever": schema.text(empty=False)})


@dataclass(frozen=True, slots=True)
class IndexFile:
    bytes: int
    sha256: str
    sample: str = ""  # of a file too large to be read whole at each opening, the digest of blocks of it


@dataclass(frozen=True, slots=True)
class Manifest:
    retriever: str
    settings: dict[str, Any]
    state: dict[str, Any]  # checked by the engine when it is opened, such as the digest of its encoder
    corpus: str  # where it was built from
    corpus_digest: str  # SHA-256 of the corpus
    passages: int
    skipped: int
    problems: tuple[str, ...]  # the first of what was skipped
    seconds: float
    versions: dict[str, str]
    files: dict[str, IndexFile]  # every other file of the index
    skipped_by_kind: dict[str, int] = field(default_factory=dict)
    vectors_from: str = ""  # the faiss file that they were taken over from, instead of being encoded
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """Identity of what a search returns: corpus, engine, its settings and its encoder."""
        parts = [self.corpus_digest, self.retriever, self.settings, _without_probe(self.state)]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rebuild_command(self, directory: Path) -> str:
        """The command that makes this index again."""
        return _rebuild_command(directory, asdict(self))

    def write(self, directory: Path) -> None:
        checksums.write_sealed(directory / FILE, asdict(self))


def _without_probe(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without the vectors that tell an encoder (dense/probe.py): machines round them differently."""
    inner = {key: _without_probe(item) if isinstance(item, Mapping) else item for key, item in state.items()}
    return {key: item for key, item in inner.items() if key != "probe"}


def describe_files(directory: Path) -> dict[str, IndexFile]:
    """Size and hashes of every file of an index folder but the manifest."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != FILE)
    return {p.relative_to(directory).as_posix(): _describe(p) for p in files}


def _describe(path: Path) -> IndexFile:
    size = path.stat().st_size
    return IndexFile(size, file_digest(path), sample_digest(path) if size > READ_WHOLE else "")


def read_manifest(directory: Path) -> Manifest:
    """Raises RetrievalError if there is no index, it is of another format, or a file is missing or cut short."""
    recover_to_read(directory, lock_beside(directory))
    file = directory / FILE
    if not file.is_file():
        state = "does not exist" if not directory.exists() else f"is not an index (it has no {FILE})"
        raise RetrievalError(f"{directory} {state}", hint="build one with `dgpo index CORPUS`, or give --index DIR")
    hint = "build it again: dgpo index CORPUS --overwrite"
    record = schema.read_record(file, _ANY_FORMAT, hint=hint, error=RetrievalError)
    found = record["format"]
    if not _UNCHANGED_SINCE.get(record["retriever"], FORMAT) <= found <= FORMAT:
        by = "an earlier" if found < FORMAT else "a later"
        raise RetrievalError(
            f"{directory} was built by {by} version of dgpo (index format {found}, this one reads {FORMAT})",
            hint=f"build it again: {_rebuild_command(directory, record)}",
        )
    broken = checksums.is_broken(record)
    record.pop(checksums.SEAL, None)
    schema.check(record, schema.of(Manifest), f"{file} is damaged", hint=hint, error=RetrievalError)
    if broken:
        raise RetrievalError(
            f"{file} was changed after it was written (its SHA-256 differs)",
            hint=f"build it again: {_rebuild_command(directory, record)}",
        )
    files = {name: IndexFile(**entry) for name, entry in record["files"].items()}
    manifest = Manifest(**record | {"problems": tuple(record["problems"]), "files": files})
    for name, entry in manifest.files.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found} bytes, {entry.bytes} were written"
            raise RetrievalError(f"{path} {state}", hint=f"build it again: {_rebuild_command(directory, record)}")
    return manifest


def check_hashes(directory: Path, manifest: Manifest, *, whole: bool) -> None:
    """Compare files with their hashes: all of each if `whole`, else of large ones a sample, which takes no time.

    Raises RetrievalError at the first that changed. A large file of an index of an earlier version has
    no sample, and is compared in full only.
    """
    for name, entry in manifest.files.items():
        if whole or entry.bytes <= READ_WHOLE:
            same = file_digest(directory / name) == entry.sha256
        else:
            same = not entry.sample or sample_digest(directory / name) == entry.sample
        if not same:
            raise RetrievalError(
                f"{directory / name} was changed after it was written (its SHA-256 differs from the manifest's)",
                hint=f"build it again: {manifest.rebuild_command(directory)}",
            )


def _rebuild_command(directory: Path, record: Mapping[str, Any]) -> str:
    """The command that makes an index again, from its manifest's record, which may be of another format."""
    words: list[str | Path] = ["dgpo", "index", str(record.get("corpus", "CORPUS")), "--out", directory]
    name, settings = record.get("retriever"), record.get("settings")
    if name in RETRIEVERS and isinstance(settings, dict):
        words += ["--retriever", name]
        defaults = flat(asdict(retriever_class(name).Config()))
        words += [w for k, v in flat(settings).items() if v != defaults.get(k) for w in ("-o", f"{k}={v}")]
    if source := record.get("vectors_from"):
        words += ["--from-faiss", str(source)]
    return shell.command(*words, "--overwrite")
