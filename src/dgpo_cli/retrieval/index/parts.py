"""A dense index encoded in parts, on several machines or devices, and merged into what one build would have made.

The corpus is dealt out in the blocks that a build encodes at once: block b goes to part b mod n. So every passage
stands in the batch that it would stand in anyway, and the merged vectors are those of an undivided build, bit for bit
on machines that compute alike. A part holds its own passages; merging needs neither the corpus nor another encoding.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.checksums import file_digest
from dgpo_cli.core.folders import recover_to_read
from dgpo_cli.core.locks import lock_beside
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import to_json, write_atomic
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.corpus.reader import CorpusReport, corpus_digest, read_corpus, recorded_location
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.retrieval.dense.encoder import Encoder
from dgpo_cli.retrieval.dense.retriever import DenseConfig, check_factory
from dgpo_cli.retrieval.dense.vectors import SHARD
from dgpo_cli.retrieval.index.build import alone, configured, existing, remove, write_manifest, writing_folder
from dgpo_cli.retrieval.index.manifest import Manifest
from dgpo_cli.retrieval.index.store import OFFSETS, PASSAGES, PassageStore, StoreWriter

FILE = "part.json"
FORMAT = 1
_POLL_S = 0.5


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

    @property
    def report(self) -> CorpusReport:
        return CorpusReport(self.passages, self.problems, Counter(self.skipped_by_kind), digest=self.corpus_digest)


def parse_part(text: str) -> tuple[int, int]:
    """ "2/4" to (2, 4). Raises ConfigError."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"--shard {text!r} is no part", hint="write it like --shard 1/4, up to --shard 4/4")
    return int(number), int(of)


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
    encoder_config = _encoder_config(retriever, config)
    with alone(out):
        found = _existing(out, overwrite)
        if found is not None:
            same = (found.number, found.of, found.retriever, found.settings) == (number, of, retriever, asdict(config))
            if same and found.corpus_digest == corpus_digest(corpus):
                return found, True
            if not overwrite:
                raise ConfigError(f"{out} holds another part", hint="give --overwrite to replace it, or another --out")
        with writing_folder(out) as writing:
            report = CorpusReport()
            with StoreWriter(writing) as store:
                for row, passage in enumerate(read_corpus(corpus, report, strict=strict, progress=progress)):
                    if row // SHARD % of == number - 1:
                        store.add(passage)
            if report.passages <= (number - 1) * SHARD:
                blocks = -(-report.passages // SHARD)
                raise ConfigError(
                    f"{corpus} has {blocks} blocks of {SHARD:,} passages, so part {number} would be empty",
                    hint=f"divide it into {blocks} parts or fewer" if blocks > 1 else "build it without --shard",
                )
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
            write_atomic(writing / FILE, to_json(asdict(part), indent=1, ensure_ascii=True) + "\n")
    return part, False


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
        found = existing(out, first.retriever, asdict(config), lambda: first.corpus_digest, overwrite=overwrite)
        if found is not None:
            return found, True
        started = time.perf_counter()
        encoder_config = _encoder_config(first.retriever, config)
        encoder = Encoder(encoder_config)
        if vectors.encoding(encoder, encoder_config) != first.encoding:
            raise RetrievalError(
                f"the parts were encoded with other {encoder_config.encoder} weights or settings than there are here",
                hint="merge where the same encoder lies, and with the same version of dgpo",
            )
        with writing_folder(out) as writing:
            _join_passages([directory for directory, _ in placed], writing, first, progress)
            vectors.prepare_shards(writing, vectors.identity(writing, encoder, encoder_config))
            for start in range(0, first.passages, SHARD):
                directory, local = _holder(placed, start)
                _link(vectors.shard_file(directory, local), vectors.shard_file(writing, start))
            state = kind.build(writing, PassageStore(writing), config, progress)
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
    """What each of several processes calls: all encode, the first one merges. None in all processes but the first.

    They meet in a folder beside `out`, so on several machines that must be a file system which all of them see.
    """
    _, config = configured(retriever, settings)
    recover_to_read(out, lock_beside(out))
    found = existing(out, retriever, asdict(config), lambda: corpus_digest(corpus), strict=strict, overwrite=overwrite)
    if found is not None:
        return (found, True) if rank == 0 else None
    together = out.with_name(f".{out.name}.parts")
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
    part = Part(**schema.check(record, kind, f"{file} is damaged", hint=again, error=RetrievalError))
    for name, digest in part.files.items() if whole else ():
        if not (directory / name).is_file():
            raise RetrievalError(f"{directory / name} is missing", hint=again)
        if file_digest(directory / name) != digest:
            raise RetrievalError(f"{directory / name} was changed after it was written", hint=again)
    if len(PassageStore(directory)) != part.rows:
        raise RetrievalError(f"{directory} does not hold the {part.rows} passages of its {FILE}", hint=again)
    for start in range(0, part.rows, SHARD):
        shard = vectors.shard_file(directory, start)
        if fault := vectors.shard_fault(shard, whole=whole):
            raise RetrievalError(f"{shard} {fault}", hint=again)
    return part


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
    block, number = divmod(start // SHARD, len(placed))
    return placed[number][0], block * SHARD


def _join_passages(directories: Sequence[Path], writing: Path, part: Part, progress: Progress | None) -> None:
    stores = [PassageStore(directory) for directory in directories]
    with StoreWriter(writing) as joined:
        for start in range(0, part.passages, SHARD):
            block, number = divmod(start // SHARD, len(stores))
            rows = range(block * SHARD, min((block + 1) * SHARD, len(stores[number])))
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


def _encoder_config(retriever: str, config: Any) -> DenseConfig:
    if retriever not in ("dense", "hybrid"):
        raise ConfigError(f"{retriever} encodes nothing that could be divided", hint="give --retriever dense or hybrid")
    found: DenseConfig = config if retriever == "dense" else config.dense
    return found


def _existing(out: Path, overwrite: bool) -> Part | None:
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
