"""Dense retrieval: passages encoded as their encoder was trained to, searched exactly or by a faiss index.

Vectors are kept in half precision. A small corpus is searched exactly, a larger one by a compressed index whose recall
against exact search is measured when it is built and stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense import vectors as files
from dgpo_cli.retrieval.dense.approximate import (
    FLAT,
    build_compressed,
    default_factory,
    empty_index,
    measure,
    set_probes,
)
from dgpo_cli.retrieval.dense.device_search import DeviceSearch, exact_search
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig, encoder_state
from dgpo_cli.retrieval.dense.probe import KEY, encoder_of, probe
from dgpo_cli.retrieval.dense.vectors import ExactSearch, encode_passages, open_vectors
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.ranking import hits

FILE = "faiss.index"
_SAMPLE = 200  # queries of the measurement
_QUERY_WORDS = 12


@dataclass(frozen=True, slots=True)
class DenseConfig(EncoderConfig):
    factory: str = field(default="auto", metadata={"source": "ours", "help": "faiss factory string, or Flat; by size"})
    nprobe: int | None = field(default=None, metadata={"source": "ours", "help": "lists per query; by measured recall"})

    def __post_init__(self) -> None:
        # super() without arguments finds no class in a dataclass with slots.
        EncoderConfig.__post_init__(self)
        if self.nprobe is not None and self.nprobe < 1:
            raise ConfigError(f"nprobe = {self.nprobe} looks into no list", hint="give an nprobe of 1 or more, or none")


class DenseRetriever:
    Config = DenseConfig
    LIBRARIES = ("faiss-cpu", "torch", "transformers", "numpy")

    @staticmethod
    def build(
        directory: Path, store: PassageStore, config: DenseConfig, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Encode all passages, in shards that a later build goes on from, and index the vectors.

        Raises ConfigError for a factory that faiss cannot build over them.
        """
        encoder = Encoder(config)
        check_factory(config, len(store), encoder)
        truncated = encode_passages(directory, store, encoder, config, progress)
        return {"truncated_passages": truncated} | index_vectors(directory, store, encoder, config, progress)

    def __init__(self, directory: Path, store: PassageStore, config: DenseConfig, state: Mapping[str, Any]) -> None:
        self._store = store
        self._encoder = encoder_of(directory, config, state)
        self._index: ExactSearch | DeviceSearch | Any  # the other is faiss's
        if state["factory"] == FLAT:
            self._index = exact_search(open_vectors(directory, len(store)), self._encoder.device)
        else:
            self._index = _open(directory / FILE, len(store), state["measured"]["nprobe"])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [hits(self._store, rows, scores) for rows, scores in self.best(queries, k)]

    def best(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query the rows of its passages and their scores, best first."""
        results = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)) for _ in queries]
        asked = [place for place, query in enumerate(queries) if query.strip()]
        if not asked:
            return results
        vectors = self._encoder.encode([queries[place] for place in asked], self._encoder.conventions.query_prefix)
        for place, found in zip(asked, self._nearest(vectors, min(k, len(self._store))), strict=True):
            results[place] = found
        return results

    def _nearest(self, vectors: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(self._index, ExactSearch | DeviceSearch):
            return self._index.search(vectors, k)
        scores, rows = self._index.search(vectors, k)  # [n, k] each; row -1 where the lists held fewer
        found = []
        for row_scores, row_ids in zip(scores, rows, strict=True):
            order = np.lexsort((row_ids, -row_scores))  # faiss leaves the order of equal scores open
            order = order[row_ids[order] >= 0]
            found.append((row_ids[order], row_scores[order]))
        return found


def check_factory(config: DenseConfig, rows: int, encoder: Encoder) -> None:
    """To be called before encoding, which may take days. Raises ConfigError for a factory unfit for `rows` vectors."""
    if config.factory not in ("auto", FLAT):
        empty_index(config.factory, rows, encoder.dimensions)


def index_vectors(
    directory: Path, store: PassageStore, encoder: Encoder, config: DenseConfig, progress: Progress | None
) -> dict[str, Any]:
    """Index the vectors in `directory` as `config` asks; returns the state that opening checks."""
    import faiss

    vectors = open_vectors(directory, len(store))
    factory = default_factory(*vectors.shape) if config.factory == "auto" else config.factory
    state = encoder_state(encoder) | {"factory": factory, KEY: probe(encoder, store[0].contents)}
    if factory == FLAT:
        return state
    index = build_compressed(vectors, factory, progress)
    measured = measure(index, exact_search(vectors, encoder.device), sample_queries(store, encoder), config.nprobe)
    faiss.write_index(index, str(directory / FILE))
    (directory / files.FILE).unlink()
    return state | {"measured": asdict(measured)}


def sample_queries(store: PassageStore, encoder: Encoder) -> np.ndarray:
    """Vectors [n, H] of the first words of an even sample of the passages."""
    rows = sorted({len(store) * n // _SAMPLE for n in range(_SAMPLE)})
    texts = [" ".join((store[row].text or store[row].title).split()[:_QUERY_WORDS]) for row in rows]
    return encoder.encode(texts, encoder.conventions.query_prefix)


def _open(file: Path, rows: int, nprobe: int | None) -> Any:
    import faiss

    again = "build the index again with --overwrite"
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise RetrievalError(f"{file} is damaged: {error}", hint=again) from error
    if index.ntotal != rows:
        raise RetrievalError(f"{file}: {index.ntotal} vectors for {rows} passages", hint=again)
    set_probes(index, nprobe)
    return index
