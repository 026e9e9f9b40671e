"""A dense index encoded in parts, on several machines or devices, and merged to the result of a single build.

The corpus is dealt out in the blocks that a build encodes at once: block b goes to part b mod n. So every passage
stands in the batch that it would stand in anyway, and the merged vectors are those of an undivided build, bit for bit
on machines that compute alike. A part holds its own passages; merging needs neither the corpus nor another encoding.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpo_cli.core.checksums import file_digest
from dgpo_cli.core.folders import beside, recover_to_read
from dgpo_cli.core.locks import lock_beside
from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.corpus.reader import CorpusReport, corpus_digest, read_corpus, recorded_location
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.retrieval.dense.encoder import Encoder
from dgpo_cli.retrieval.dense.retriever import DenseConfig, check_factory
from dgpo_cli.retrieval.index.build import alone, configured, existing, remove, write_manifest, writing_folder
from dgpo_cli.retrieval.index.manifest import Manifest
from dgpo_cli.retrieval.index.part import Part, existing_part, read_part
from dgpo_cli.retrieval.index.store import OFFSETS, PASSAGES, PassageStore, StoreWriter

_POLL_S = 0.5


def build_part(
    corpus: Path | str,
    out: Path,
    number: int,
    of: int,
    *,
    retriever: str,
    settings: Mapping[str, Any],
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Part, bool]:
    """Encode part `number` of `of` of an index into `out`; returns it and whether it was there already.

    An equal part is used as it is, another one replaced with `overwrite`, and what a killed build left is gone on from.
    Raises as `build_index`, and ConfigError for a retriever
    without an encoder, or where the corpus is too small to be divided so.
    """
    _, config = configured(retriever, settings)
    encoder_config = encoder_config_of(retriever, config)
    with alone(out):
        found = existing_part(out, overwrite)
        if found is not None:
            same = (found.number, found.of, found.retriever, found.settings) == (number, of, retriever, asdict(config))
            if same and found.corpus_digest == corpus_digest(corpus):
                return found, True
            if not overwrite:
                raise ConfigError(f"{out} holds another part", hint="give --overwrite to replace it, or another --out")
        with writing_folder(out) as writing:
            report = _write_passages(corpus, writing, number, of, strict=strict, progress=progress)
            kept, encoder = PassageStore(writing), Encoder(encoder_config)
            check_factory(encoder_config, report.passages, encoder)
            vectors.encode_shards(writing, kept, encoder, encoder_config, progress)
            part = Part(
                number=number,
                of=of,
                rows=len(kept),
                retriever=retriever,
                settings=asdict(config),
                encoding=vectors.encoding(encoder, encoder_config),
                corpus=recorded_location(corpus),
                corpus_digest=report.digest,
                passages=report.passages,
                skipped_by_kind=dict(report.kinds.most_common()),
                problems=report.problems,
                files={name: file_digest(writing / name) for name in (PASSAGES, OFFSETS)},
            )
            part.write(writing)
    return part, False


def _write_passages(
    corpus: Path | str, writing: Path, number: int, of: int, *, strict: bool, progress: Progress | None
) -> CorpusReport:
    """The passages of one part into `writing`. Raises ConfigError where it would have none."""
    report = CorpusReport()
    with StoreWriter(writing) as store:
        for row, passage in enumerate(read_corpus(corpus, report, strict=strict, progress=progress)):
            if row // vectors.SHARD % of == number - 1:
                store.add(passage)
    if report.passages <= (number - 1) * vectors.SHARD:
        blocks = -(-report.passages // vectors.SHARD)
        raise ConfigError(
            f"{corpus} has {blocks} blocks of {vectors.SHARD:,} passages, so part {number} would be empty",
            hint=f"divide it into {blocks} parts or fewer" if blocks > 1 else "build it without --shard",
        )
    return report


def merge_parts(
    directories: Sequence[Path], out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> tuple[Manifest, bool]:
    """The index that all parts together make, in `out`, and whether it was there already. The parts stay as they are.

    Raises RetrievalError for a folder that holds no part, ConfigError for parts that do not fit together.
    """
    placed = _fitting({directory: read_part(directory, whole=True) for directory in directories})
    first = placed[0][1]
    kind, config = configured(first.retriever, first.settings)
    with alone(out):
        found = existing(out, first.retriever, asdict(config), None, digest=first.corpus_digest, overwrite=overwrite)
        if found is not None:
            return found, True
        started = time.perf_counter()
        encoder_config = encoder_config_of(first.retriever, config)
        encoder = Encoder(encoder_config)
        if vectors.encoding(encoder, encoder_config) != first.encoding:
            raise RetrievalError(
                f"the parts were encoded with other {encoder_config.encoder} weights or settings than there are here",
                hint="merge where the same encoder lies, and with the same version of dgpo",
            )
        with writing_folder(out) as writing:
            _join_passages([directory for directory, _ in placed], writing, first, progress)
            joined, wanted = PassageStore(writing), vectors.identity(writing, encoder, encoder_config)
            vectors.prepare_shards(writing, wanted, encoder, joined[0].contents)
            for start in range(0, first.passages, vectors.SHARD):
                directory, local = _holder(placed, start)
                _link(vectors.shard_file(directory, local), vectors.shard_file(writing, start))
            state = kind.build(writing, joined, config, progress)
            built = write_manifest(writing, first.retriever, config, state, first.corpus, first.report, started)
    return built, False


def build_together(
    corpus: Path | str,
    out: Path,
    rank: int,
    processes: int,
    *,
    retriever: str,
    settings: Mapping[str, Any],
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Manifest, bool] | None:
    """Called by each of several processes: all encode, the first one merges. None in all processes but the first.

    They meet in a folder next to `out`, so on several machines that must be a file system which all of them see.
    """
    _, config = configured(retriever, settings)
    recover_to_read(out, lock_beside(out))
    found = existing(out, retriever, asdict(config), corpus, strict=strict, overwrite=overwrite)
    if found is not None:
        return (found, True) if rank == 0 else None
    together = beside(out, "parts")
    directories = [together / f"{number}-of-{processes}" for number in range(1, processes + 1)]
    own, _ = build_part(
        corpus,
        directories[rank],
        rank + 1,
        processes,
        retriever=retriever,
        settings=settings,
        strict=strict,
        overwrite=True,
        progress=progress,
    )
    if rank != 0:
        return None
    # A process that fails ends its launcher, and with it the waiting.
    while any(_common(directory) != own.common for directory in directories):
        time.sleep(_POLL_S)
    merged = merge_parts(directories, out, overwrite=overwrite, progress=progress)
    remove(together)
    return merged


def _common(directory: Path) -> dict[str, Any] | None:
    try:
        return read_part(directory).common
    except RetrievalError:
        return None


def _fitting(parts: Mapping[Path, Part]) -> list[tuple[Path, Part]]:
    """By number. Raises ConfigError unless each part of one index is there once."""
    placed = sorted(parts.items(), key=lambda item: item[1].number)
    first_place, first = placed[0]
    for directory, part in placed[1:]:
        different = [name for name, value in part.common.items() if value != first.common[name]]
        if different:
            raise ConfigError(
                f"{directory} and {first_place} are parts of two indexes: another {', '.join(different)}",
                hint="merge parts of one corpus that were encoded with the same command but for --shard",
            )
    numbers = [part.number for _, part in placed]
    if missing := sorted(set(range(1, first.of + 1)) - set(numbers)):
        raise ConfigError(
            f"part {', '.join(map(str, missing))} of {first.of} is missing",
            hint=f"build it: dgpo index CORPUS --retriever {first.retriever} --shard {missing[0]}/{first.of}",
        )
    if len(numbers) > first.of:
        raise ConfigError(f"{len(numbers)} folders for {first.of} parts", hint="name each part once")
    return placed


def _holder(placed: Sequence[tuple[Path, Part]], start: int) -> tuple[Path, int]:
    """Which folder holds the block that begins at row `start` of the index, and the row there."""
    block, number = divmod(start // vectors.SHARD, len(placed))
    return placed[number][0], block * vectors.SHARD


def _join_passages(directories: Sequence[Path], writing: Path, part: Part, progress: Progress | None) -> None:
    stores = [PassageStore(directory) for directory in directories]
    with StoreWriter(writing) as joined:
        for start in range(0, part.passages, vectors.SHARD):
            block, number = divmod(start // vectors.SHARD, len(stores))
            rows = range(block * vectors.SHARD, min((block + 1) * vectors.SHARD, len(stores[number])))
            for row in rows:
                joined.add(stores[number][row])
            if progress is not None:
                progress(start + len(rows), part.passages)


def _link(shard: Path, place: Path) -> None:
    """Both files of a shard, without a second copy where the file system can."""
    for source, target in ((shard.with_suffix(".json"), place.with_suffix(".json")), (shard, place)):
        if target.is_file():
            continue
        try:
            os.link(source, target)
        except OSError:
            writing = target.with_suffix(".writing")
            shutil.copyfile(source, writing)
            writing.replace(target)


def encoder_config_of(retriever: str, config: Any) -> DenseConfig:
    if retriever not in ("dense", "hybrid"):
        raise ConfigError(f"{retriever} encodes nothing that could be divided", hint="give --retriever dense or hybrid")
    found: DenseConfig = config if retriever == "dense" else config.dense
    return found
