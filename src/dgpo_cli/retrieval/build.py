"""Corpus file to index folder, written beside its place and renamed when complete."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.corpus import CorpusReport, read_corpus
from dgpo_cli.retrieval.manifest import Manifest, file_sizes, read_manifest
from dgpo_cli.retrieval.registry import builder
from dgpo_cli.retrieval.store import PassageStore, StoreWriter


def build_index(
    corpus: Path,
    out: Path,
    *,
    retriever: str = "bm25",
    settings: Mapping[str, Any] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Manifest, bool]:
    """Build an index of `corpus` in `out`; returns its manifest and whether an equal one was there already.

    Raises InputError for a corpus that cannot be used, ConfigError if `out` holds something else and `overwrite` is off.
    """
    module = builder(retriever)
    resolved = resolve_settings(retriever, settings or {})
    started = time.perf_counter()
    writing = out.with_name(f".{out.name}.writing")
    if writing.exists():
        shutil.rmtree(writing)
    writing.mkdir(parents=True)
    try:
        report = CorpusReport()
        store = StoreWriter(writing)
        for passage in read_corpus(corpus, report, strict=strict):
            store.add(passage)
            if progress is not None and report.passages % 10_000 == 0:
                progress(report.passages, 0)
        store.close()
        existing = _existing(out, retriever, resolved, report.digest, overwrite)
        if existing is not None:
            return existing, True
        module.build(writing, PassageStore(writing), resolved)
        manifest = Manifest(
            retriever=retriever,
            settings=resolved,
            corpus=str(corpus),
            corpus_digest=report.digest,
            passages=report.passages,
            skipped=report.skipped,
            problems=tuple(report.problems),
            seconds=time.perf_counter() - started,
            versions={name: metadata.version(name) for name in ("bm25s", "rank-bm25", "numpy")},
            files=file_sizes(writing),
        )
        manifest.write(writing)
        if out.exists():
            shutil.rmtree(out)
        writing.rename(out)
        return manifest, False
    finally:
        if writing.exists():
            shutil.rmtree(writing)


def resolve_settings(retriever: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the retriever under what was given. Raises ConfigError for a setting that it does not have."""
    defaults: dict[str, Any] = builder(retriever).DEFAULTS
    if unknown := sorted(set(given) - set(defaults)):
        raise ConfigError(
            f"retriever {retriever!r} has no setting {', '.join(unknown)}", hint=f"it has: {', '.join(sorted(defaults))}"
        )
    return defaults | dict(given)


def _existing(
    out: Path, retriever: str, settings: Mapping[str, Any], corpus_digest: str, overwrite: bool
) -> Manifest | None:
    """The index at `out` if it is the one that would be built; None if it is to be replaced or is not there."""
    if not out.exists() or overwrite:
        return None
    try:
        found = read_manifest(out)
    except RetrievalError as error:
        if any(out.iterdir()):
            raise ConfigError(f"{out} exists and is not a usable index: {error.message}", hint="give --overwrite or another --out") from error
        return None
    same = {k: v for k, v in found.settings.items() if k in settings} == dict(settings)
    if found.corpus_digest == corpus_digest and found.retriever == retriever and same:
        return found
    what = "another corpus" if found.corpus_digest != corpus_digest else "other settings"
    raise ConfigError(f"{out} holds an index of {what} ({found.corpus})", hint="give --overwrite to replace it, or another --out")
