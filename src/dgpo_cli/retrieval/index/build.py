"""Corpus file to index folder, written next to its place and renamed when complete."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from dgpo_cli import __version__
from dgpo_cli.core import folders
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.locks import Lock
from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError, InputError, RetrievalError
from dgpo_cli.retrieval.base import IndexedRetriever
from dgpo_cli.retrieval.corpus.known import KnownFiles, write_known
from dgpo_cli.retrieval.corpus.reader import CorpusReport, corpus_digest, read_corpus, recorded_location
from dgpo_cli.retrieval.index import manifest as manifests
from dgpo_cli.retrieval.index.manifest import Manifest, describe_files, read_manifest
from dgpo_cli.retrieval.index.store import OFFSETS, PASSAGES, SHARDS, PassageStore, StoreWriter
from dgpo_cli.retrieval.registry import retriever_class

_MARKS = {manifests.FILE, PASSAGES, OFFSETS}


def build_index(
    corpus: Path | str,
    out: Path,
    *,
    retriever: str = "bm25",
    settings: Mapping[str, Any] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    from_faiss: Path | None = None,
    known_as: str | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, bool]:
    """Build an index of `corpus` in `out`; returns its manifest and whether an equal one was there already.

    `progress` counts passages, once while they are read and once more while the engine takes them in. What a killed
    build left behind is replaced, but for encoded passages, from which the same build goes on. With `from_faiss` a
    sample is encoded and no more: see retrieval/index/import_faiss.py. `known_as` is how `dgpo index` calls corpus and
    vectors where they are not the user's files. Raises InputError for a corpus that cannot be used, ConfigError for
    an unknown retriever or setting, and where `out` holds another index (without `overwrite`) or anything but an index.
    """
    kind, config = configured(retriever, settings or {})
    if from_faiss is not None and retriever not in ("dense", "hybrid"):
        raise ConfigError(f"--from-faiss has no effect on {retriever}", hint="give --retriever dense or hybrid")
    started = time.perf_counter()
    with alone(out):
        found = existing(out, retriever, asdict(config), corpus, strict=strict, overwrite=overwrite)
        if found is not None:
            return found, True
        with writing_folder(out) as writing:
            report = write_passages(corpus, writing, strict=strict, progress=progress)
            store = PassageStore(writing)
            if from_faiss is None:
                state = kind.build(writing, store, config, progress)
            else:
                from dgpo_cli.retrieval.index.import_faiss import adopt_faiss

                state = adopt_faiss(writing, store, retriever, config, from_faiss, report, progress)
            source = "" if from_faiss is None or known_as else str(from_faiss.absolute())
            location = known_as or recorded_location(corpus)
            built = write_manifest(writing, retriever, config, state, location, report, started, source)
    return built, False


def configured(retriever: str, settings: Mapping[str, Any]) -> tuple[type[IndexedRetriever], Any]:
    """The class of a retriever and its settings over its defaults. Raises ConfigError."""
    kind = retriever_class(retriever)
    try:
        return kind, apply_options(kind.Config, settings)
    except ConfigError as error:
        raise ConfigError(
            error.message.replace(kind.Config.__qualname__, f"retriever {retriever}"), error.hint
        ) from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Lock `out`, and put back an index that a killed replacement hid. Raises BusyError."""
    with Lock.beside(out):
        folders.recover(out)
        remove(folders.beside(out, "old"))
        yield


@contextmanager
def writing_folder(out: Path) -> Iterator[Path]:
    """A folder that replaces `out` when the block ends; after an error only parts that took long to compute stay."""
    writing = folders.beside(out, "writing")
    discard_unfinished(out)
    writing.mkdir(parents=True, exist_ok=True)
    try:
        yield writing
        folders.put_in_place(writing, out)
    finally:
        _clear(writing)


def write_manifest(
    writing: Path,
    retriever: str,
    config: Any,
    state: dict[str, Any],
    corpus: str,
    report: CorpusReport,
    started: float,
    vectors_from: str = "",
) -> Manifest:
    """Describe the finished files of an index; parts kept for an interrupted build are removed."""
    remove(writing / SHARDS)
    built = Manifest(
        retriever=retriever,
        settings=asdict(config),
        state=state,
        corpus=corpus,
        corpus_digest=report.digest,
        passages=report.passages,
        skipped=report.skipped,
        skipped_by_kind=dict(report.kinds.most_common()),
        problems=tuple(report.problems),
        seconds=time.perf_counter() - started,
        versions=_versions(retriever_class(retriever)),
        files=describe_files(writing),
        vectors_from=vectors_from,
    )
    built.write(writing)
    return built


def write_passages(
    corpus: Path | str,
    directory: Path,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    known: KnownFiles | None = None,
) -> CorpusReport:
    """Write a corpus into a store, and for a folder the record of its files that an update needs. Raises InputError."""
    report = CorpusReport()
    with StoreWriter(directory) as store:
        for passage in read_corpus(corpus, report, strict=strict, progress=progress, known=known):
            store.add(passage)
    if report.files:
        write_known(directory, report.files)
    return report


def _versions(kind: type[IndexedRetriever]) -> dict[str, str]:
    own = {"dgpo-cli": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    return own | {name: metadata.version(name) for name in kind.LIBRARIES}


def existing(
    out: Path,
    retriever: str,
    settings: Mapping[str, Any],
    corpus: Path | str | None,
    *,
    digest: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Manifest | None:
    """The index at `out` if it is the one that would be built; None if there is none, or it is to be replaced.

    `corpus` is where it lies; None where only its `digest` is known. Raises ConfigError if anything else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    # Replacing means deleting, so it is done to nothing but an index.
    if not out.is_dir() or not any((out / name).exists() for name in _MARKS):
        raise ConfigError(f"{out} exists and is not an index", hint="give another --out, or move it away")
    if overwrite:
        return None
    replace = "give --overwrite to replace it, or another --out"
    try:
        found = read_manifest(out)
    except RetrievalError as error:
        raise ConfigError(f"{out} exists and is not a usable index: {error.message}", hint=replace) from error
    if found.corpus_digest != (digest if corpus is None else corpus_digest(corpus)):
        if corpus is not None and found.corpus == recorded_location(corpus):
            update = "; --update reads only the files that changed" if Path(corpus).is_dir() else ""
            raise ConfigError(
                f"{out} holds an index of what {found.corpus} held before it changed", hint=replace + update
            )
        raise ConfigError(f"{out} holds an index of another corpus ({found.corpus})", hint=replace)
    stored = _with_defaults(found.settings, asdict(retriever_class(retriever).Config()))
    if (found.retriever, stored) != (retriever, dict(settings)):
        names = sorted(name for name, value in settings.items() if stored.get(name) != value)
        what = f"by {found.retriever}" if found.retriever != retriever else f"with another {', '.join(names)}"
        raise ConfigError(f"{out} holds an index of this corpus {what}", hint=replace)
    if strict and found.skipped:
        raise InputError(f"{found.corpus}: {found.problems[0]}", hint="repair or remove it, or leave --strict out")
    return found


def discard_unfinished(out: Path) -> None:
    """Delete the leftovers of a killed build of `out`, except parts that took long to compute."""
    _clear(folders.beside(out, "writing"))


def _clear(writing: Path) -> None:
    """Delete all of an unfinished index except parts that took long to compute."""
    for path in writing.iterdir() if writing.exists() else ():
        if path.is_dir() and path.name != SHARDS:
            remove(path)
        elif not path.is_dir():
            path.unlink()
    if writing.exists() and not any(writing.iterdir()):
        writing.rmdir()


def remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _with_defaults(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an index; one that was built too early to name a setting has its default."""
    filled = dict(defaults) | dict(stored)
    for name, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(stored.get(name), Mapping):
            filled[name] = _with_defaults(stored[name], value)
    return filled
