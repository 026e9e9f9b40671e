"""Vectors of all passages in half precision: encoded in shards that survive a kill, searched exactly.

Every shard is encoded on its own and renamed into place when it is complete, so a build that goes on makes the same
vectors as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core import folders, schema
from dgpo_cli.core.checksums import file_digest, is_broken, sealed
from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.core.progress import Progress
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError, RetrievalError
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig
from dgpo_cli.retrieval.dense.probe import KEY, differs, probe
from dgpo_cli.retrieval.index.mapped import new_array, open_array
from dgpo_cli.retrieval.index.store import PASSAGES, SHARDS, PassageStore
from dgpo_cli.retrieval.lexical.ranking import best_rows, kth_best

FILE = "vectors.npy"
SHARD = 2_048  # passages; what a kill loses at most
_IDENTITY = "encoding.json"
_RECORD = schema.record({"truncated": schema.whole(0)}, {"vectors": schema.text(), "sha256": schema.text()})
_NOISE = 1e-5  # of a product of unit vectors in single precision; it depends on their place in the matrix
_CHUNK = 1 << 16  # rows scored at once
_IN_MEMORY = 1 << 30  # bytes of single precision up to which the rows are converted once and kept


class HeldVectors:
    """Vectors [N, H] of an earlier index by the contents of their passages, made by the same encoder and settings."""

    def __init__(self, store: PassageStore, vectors: np.ndarray, *, any_truncated: bool) -> None:
        self._rows = {_contents_key(passage.contents): row for row, passage in enumerate(store)}
        self._vectors, self._any_truncated = vectors, any_truncated

    def row(self, contents: str) -> int | None:
        return self._rows.get(_contents_key(contents))

    def encode(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        """As `encoder.encode` of passages, in half precision the same but for its last bit: a vector that is held was
        encoded in another batch."""
        rows = [self.row(text) for text in texts]
        here = [place for place, row in enumerate(rows) if row is not None]
        missing = [place for place, row in enumerate(rows) if row is None]
        prefix = encoder.conventions.passage_prefix
        made = np.empty((len(texts), self._vectors.shape[1]), dtype=np.float32)
        made[missing] = encoder.encode([texts[place] for place in missing], prefix)
        made[here] = self._vectors[[row for row in rows if row is not None]]
        if self._any_truncated:
            encoder.count_truncated([texts[place] for place in here], prefix)
        return made


def _contents_key(contents: str) -> bytes:
    return hashlib.blake2b(contents.encode(), digest_size=16).digest()


def encode_passages(
    directory: Path, store: PassageStore, encoder: Encoder, config: EncoderConfig, progress: Progress | None
) -> int:
    """Write FILE, [N, H] in half precision; returns how many passages were cut at `max_length`.

    Shards that an earlier build left for the same passages and the same encoding are used as they are.
    """
    truncated = encode_shards(directory, store, encoder, config, progress)
    shards = [shard_file(directory, start) for start in range(0, len(store), SHARD)]
    dimensions = open_array(shards[0]).shape[1]
    joined = new_array(directory / FILE, np.float16, (len(store), dimensions))
    for number, shard in enumerate(shards):
        joined[number * SHARD : (number + 1) * SHARD] = open_array(shard)
    return truncated


def encode_shards(
    directory: Path,
    store: PassageStore,
    encoder: Encoder,
    config: EncoderConfig,
    progress: Progress | None,
    held: HeldVectors | None = None,
) -> int:
    """Write a file of vectors for every SHARD passages; returns how many passages were cut at `max_length`.

    Passages whose vectors are `held` are not encoded again.
    """
    prepare_shards(directory, identity(directory, encoder, config), encoder, store[0].contents)
    truncated = 0
    for start in range(0, len(store), SHARD):
        rows = range(start, min(start + SHARD, len(store)))
        if shard_fault(kept := shard_file(directory, start)):
            before = encoder.truncated
            texts = [store[row].contents for row in rows]
            prefix = encoder.conventions.passage_prefix
            vectors = encoder.encode(texts, prefix) if held is None else held.encode(texts, encoder)
            _write_shard(kept, vectors, encoder.truncated - before)
        truncated += _record_of(kept)["truncated"]
        if progress is not None:
            progress(rows.stop, len(store))
    return truncated


def open_vectors(directory: Path, rows: int) -> np.ndarray:
    """FILE, memory-mapped. Raises RetrievalError if it is not one vector for each of `rows` passages."""
    file, again = directory / FILE, "build the index again with --overwrite"
    try:
        vectors = open_array(file)
    except (OSError, ValueError) as error:
        pass_on(error)
        raise RetrievalError(f"{file} is damaged: {error}", hint=again) from error
    if vectors.dtype != np.float16 or vectors.ndim != 2 or len(vectors) != rows:
        raise RetrievalError(f"{file}: {vectors.shape} {vectors.dtype} for {rows} passages", hint=again)
    return vectors


class ExactSearch:
    """Inner products with all vectors. `vectors` [N, H] may be larger than memory."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._kept: list[tuple[int, np.ndarray]] | None = None

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query [n, H] rows and scores of the `k` best, best first, equal ones in row order."""
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for start, chunk in self._chunks():
            for place, rough in enumerate(queries @ chunk.T):  # [chunk]
                rows = np.flatnonzero(rough >= kth_best(rough, k) - _NOISE)
                # Row by row in double precision, so that equal vectors have equal scores wherever they stand.
                found[place].append((rows + start, (chunk[rows].astype(np.float64) * queries[place]).sum(axis=1)))
        return [best_of(parts, k) for parts in found]

    def _chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        if self._kept is not None:
            return iter(self._kept)
        starts = range(0, len(self._vectors), _CHUNK)
        chunks = ((start, self._vectors[start : start + _CHUNK].astype(np.float32)) for start in starts)
        if self._vectors.size * 4 <= _IN_MEMORY:
            self._kept = list(chunks)
            return iter(self._kept)
        return chunks


def best_of(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of rows and their scores that were found chunk by chunk."""
    rows, scores = (np.concatenate(side) for side in zip(*parts, strict=True))
    best = best_rows(scores, k)  # parts come in row order, so equal scores stay in it
    return rows[best], scores[best]


def identity(directory: Path, encoder: Encoder, config: EncoderConfig) -> dict[str, Any]:
    """The settings that a vector depends on, with the batch size, which changes its last bits."""
    return {"passages": file_digest(directory / PASSAGES)} | encoding(encoder, config)


def encoding(encoder: Encoder, config: EncoderConfig) -> dict[str, Any]:
    """Digest of all that a vector depends on besides the passages."""
    return {
        "encoder": encoder.digest(),
        "prefix": encoder.conventions.passage_prefix,
        "pooling": encoder.conventions.pooling,
        "max_length": config.max_length,
        "batch_size": config.batch_size,
        "shard": SHARD,
    }


def prepare_shards(directory: Path, wanted: Mapping[str, Any], encoder: Encoder, passage: str) -> None:
    """An empty folder for shards, or the one that was left with shards of this very encoding.

    `passage` is one of those that are encoded.
    """
    file = directory / SHARDS / _IDENTITY
    if file.is_file() and _is_same(file, wanted, encoder):
        folders.sweep(file.parent)
        return
    if file.parent.exists():
        shutil.rmtree(file.parent)
    write_atomic(file, json.dumps(dict(wanted) | {KEY: probe(encoder, passage)}))


def _is_same(file: Path, wanted: Mapping[str, Any], encoder: Encoder) -> bool:
    try:
        found = parse_json(file.read_bytes(), str(file))
    except InputError:
        return False
    if not isinstance(found, dict):
        return False
    known = found.pop(KEY, None)
    return found == dict(wanted) and not differs(known, encoder)


def shard_file(directory: Path, start: int) -> Path:
    """The vectors of the passages from row `start` on; next to it, as .json, the number of them that were cut."""
    return directory / SHARDS / f"{start:012}.npy"


def _record_of(file: Path) -> dict[str, Any]:
    path = file.with_suffix(".json")
    made: dict[str, Any] = schema.read_record(path, _RECORD, hint=f"delete {path}", error=RetrievalError)
    return made


def shard_fault(file: Path, *, whole: bool = True) -> str:
    """The fault of a shard; "" if it is as it was written or, if not `whole`, if it exists.

    One of an earlier version has no hash to compare.
    """
    if not file.is_file() or not file.with_suffix(".json").is_file():
        return "is missing"
    if not whole:
        return ""
    try:
        written = _record_of(file)
    except RetrievalError:
        return "has a damaged record"
    if is_broken(written):
        return "has a record that was changed after it was written"
    same = written.get("vectors") in (None, file_digest(file))
    return "" if same else "was changed after it was written (its SHA-256 differs)"


def _write_shard(file: Path, vectors: np.ndarray, truncated: int) -> None:
    """The vectors come first: a record alone, left by a kill, would describe other vectors."""
    content = io.BytesIO()
    np.save(content, vectors.astype(np.float16), allow_pickle=False)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_atomic(file, content.getvalue())
    write_atomic(file.with_suffix(".json"), json.dumps(sealed({"truncated": truncated, "vectors": digest})))
