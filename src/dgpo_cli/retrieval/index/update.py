"""Update an index of a folder that changed: only files that changed are read and encoded, with the result of a fresh
build.

Files are known by name and SHA-256 (retrieval/corpus/known.py), passages by their contents. Word statistics depend on
every passage, so BM25 is computed again; that takes seconds where reading and encoding take hours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.corpus.known import FILE as KNOWN
from dgpo_cli.retrieval.corpus.known import read_known
from dgpo_cli.retrieval.corpus.reader import corpus_digest, recorded_location
from dgpo_cli.retrieval.dense import probe, vectors
from dgpo_cli.retrieval.dense.approximate import FLAT
from dgpo_cli.retrieval.dense.encoder import Encoder, encoder_state
from dgpo_cli.retrieval.dense.retriever import DenseConfig
from dgpo_cli.retrieval.index.build import alone, configured, write_manifest, write_passages, writing_folder
from dgpo_cli.retrieval.index.manifest import Manifest, check_hashes, read_manifest
from dgpo_cli.retrieval.index.parts import encoder_config_of
from dgpo_cli.retrieval.index.store import PassageStore


@dataclass(frozen=True, slots=True)
class IndexUpdate:
    """Counts of the work of an update."""

    files: int
    files_read: int
    passages: int
    passages_encoded: int | None  # None where the retriever encodes nothing


def update_index(
    folder: Path, out: Path, *, strict: bool = False, progress: Progress | None = None
) -> tuple[Manifest, IndexUpdate | None]:
    """Update the index in `out` to the contents of `folder`, with its retriever and settings.

    Returns its manifest and the counts of the work, None where nothing had changed. Vectors of a compressed index are
    gone, so that such an index, and one in Milvus, is encoded as a whole. Raises RetrievalError where `out` is no whole
    index, ConfigError where it is one of another corpus, which is still where it was.
    """
    started = time.perf_counter()
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="--update is for a folder of files; give --overwrite instead")
    with alone(out):
        former, place = read_manifest(out), recorded_location(folder)
        same = former.corpus_digest == corpus_digest(folder)
        # A folder that is gone from where it was has been moved, or its project has.
        moved = (out / KNOWN).is_file() and not Path(former.corpus).exists()
        if not same and not moved and former.corpus != place:
            raise ConfigError(
                f"{out} holds an index of another corpus ({former.corpus})",
                hint="give --out of this corpus's index, or --overwrite to replace it",
            )
        kind, config = configured(former.retriever, former.settings)
        if same and not (strict and former.skipped):
            return former, None
        check_hashes(out, former, whole=True)
        kept = PassageStore(out)
        known = read_known(out, kept)
        with writing_folder(out) as writing:
            report = write_passages(folder, writing, strict=strict, progress=progress, known=known)
            store = PassageStore(writing)
            encoded = None
            if former.retriever in ("dense", "hybrid"):
                of_dense = encoder_config_of(former.retriever, config)
                encoded = _encode_missing(out, former, kept, writing, store, of_dense, progress)
            state = kind.build(writing, store, config, progress)
            built = write_manifest(writing, former.retriever, config, state, place, report, started)
    read = len(report.files) - (known.given if known is not None else 0)
    return built, IndexUpdate(len(report.files), read, built.passages, encoded)


def _encode_missing(
    out: Path,
    former: Manifest,
    kept: PassageStore,
    writing: Path,
    store: PassageStore,
    config: DenseConfig,
    progress: Progress | None,
) -> int:
    """Shards of vectors into `writing`, as a build would leave them there; returns how many passages were encoded."""
    state = former.state.get("dense", former.state)
    encoder = Encoder(config)
    now = encoder_state(encoder)
    if state["factory"] != FLAT or former.vectors_from or {name: state.get(name) for name in now} != now:
        return len(store)
    if probe.KEY in state and probe.differs(state[probe.KEY], encoder):
        return len(store)
    made = vectors.open_vectors(out, len(kept))
    held = vectors.HeldVectors(kept, made, any_truncated=bool(state["truncated_passages"]))
    vectors.encode_shards(writing, store, encoder, config, progress, held)
    return sum(held.row(passage.contents) is None for passage in store)
