"""Milvus as the engine: BM25, dense or both, in a file of this machine (milvus-lite) or on a cluster, by one code.

The index folder keeps the passages and says where the rows are; Milvus keeps what is searched. For BM25 that are sparse
vectors of word scores made here, so that an inner product is the score that the bm25 retriever gives, whatever Milvus
does with its segments and shards. `scoring=milvus` leaves BM25 to Milvus's own full-text function instead, whose
counts are those of one segment in milvus-lite. Hybrid is fused here (retrieval/hybrid.py): equal sums in row order.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.core.schema import read_record, texts
from dgpo_cli.core.types import Hit
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense import vectors as files
from dgpo_cli.retrieval.dense.approximate import EXACT_UP_TO, RECALL_AT
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig, encoder_state
from dgpo_cli.retrieval.dense.probe import KEY, encoder_of, probe
from dgpo_cli.retrieval.dense.retriever import sample_queries
from dgpo_cli.retrieval.dense.vectors import ExactSearch, encode_passages, open_vectors
from dgpo_cli.retrieval.hybrid import fuse
from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.lexical.bm25 import BM25Config
from dgpo_cli.retrieval.lexical.ranking import hits
from dgpo_cli.retrieval.lexical.words import stop_words, words_of
from dgpo_cli.retrieval.remote.milvus.collection import MOST, MilvusCollection, VectorField
from dgpo_cli.retrieval.remote.milvus.connection import checked_uri, connect, is_embedded
from dgpo_cli.retrieval.remote.milvus.load import (
    COUNTS,
    VOCABULARY,
    CollectionRows,
    as_record,
    count_passages,
    first_wrong,
    identity,
    load,
)

_WORDS, _VECTOR = "words", "vector"  # fields
_CHECKED = 16  # passages compared with the collection when an index is opened
_FLAT, _SPARSE_INDEX = "FLAT", "SPARSE_INVERTED_INDEX"
_LEAST_EF = 64  # of HNSW; it must be k or more


@dataclass(frozen=True, slots=True)
class MilvusConfig:
    uri: str | None = field(default=None, metadata={"source": "ours", "help": "FILE.db, or http://host:19530"})
    mode: Literal["bm25", "dense", "hybrid"] = field(default="bm25", metadata={"source": "ours"})
    bm25: BM25Config = field(default_factory=BM25Config)
    scoring: Literal["dgpo", "milvus"] = field(
        default="dgpo", metadata={"source": "ours", "help": "whose BM25: ours as sparse vectors, or Milvus's function"}
    )
    dense: EncoderConfig = field(default_factory=EncoderConfig)
    dense_index: str = field(
        default="auto", metadata={"source": "ours", "help": "FLAT, HNSW, IVF_SQ8, ...; auto: FLAT, HNSW on a cluster"}
    )
    build: dict[str, int | float | str] = field(
        default_factory=dict, metadata={"source": "Milvus's defaults", "help": "of dense_index, e.g. -o build.M=16"}
    )
    search: dict[str, int | float | str] = field(
        default_factory=dict, metadata={"source": "Milvus's defaults", "help": "of dense_index, e.g. -o search.ef=128"}
    )
    rrf_k: int = field(default=60, metadata={"source": "Cormack et al. 2009"})
    depth: int = field(default=100, metadata={"source": "ours", "help": "passages taken from each half of hybrid"})
    collection: str = field(default="dgpo", metadata={"source": "ours", "help": "first part of the collection's name"})
    shards: int = field(default=1, metadata={"source": "Milvus's default"})
    replicas: int = field(default=1, metadata={"source": "Milvus's default"})

    def __post_init__(self) -> None:
        if self.uri is not None:
            object.__setattr__(self, "uri", checked_uri(self.uri))
        if min(self.depth, self.shards, self.replicas) < 1 or self.rrf_k < 0 or self.depth > MOST:
            raise ConfigError(
                f"rrf_k = {self.rrf_k}, depth = {self.depth}, shards = {self.shards}, replicas = {self.replicas}: "
                "out of range",
                hint=f"give 0 or more for rrf_k, 1 or more for the others, and {MOST} at most for depth",
            )
        if not self.collection.isidentifier():
            raise ConfigError(
                f"collection = {self.collection!r} is no name", hint="give letters, digits and _, such as wiki18"
            )
        of_dense = (self.dense, self.dense_index, self.build, self.search)
        if self.mode == "bm25" and of_dense != (EncoderConfig(), "auto", {}, {}):
            raise ConfigError(
                "settings of an encoder or of dense_index have no effect on mode=bm25",
                hint="give -o mode=dense or -o mode=hybrid",
            )
        if self.mode == "dense" and (self.bm25, self.scoring) != (BM25Config(), "dgpo"):
            raise ConfigError("settings of BM25 have no effect on mode=dense", hint="give -o mode=hybrid, or leave out")
        if self.scoring == "milvus":
            self._require_milvus_can_score()

    def _require_milvus_can_score(self) -> None:
        if self.uri is not None and is_embedded(self.uri):
            raise ConfigError(
                "milvus-lite's own BM25 counts words in each of its segments, so answers would depend on how the load "
                "went",
                hint="leave -o scoring=milvus out, or give the --uri of a Milvus server",
            )
        if self.bm25.tokenizer != "auto":
            raise ConfigError(
                f"Milvus's own BM25 cuts words by itself, so tokenizer={self.bm25.tokenizer} has no effect",
                hint="leave -o scoring=milvus out, or leave -o bm25.tokenizer out",
            )
        if self.bm25.variant != "lucene" or self.bm25.k1 <= 0:
            raise ConfigError(
                f"Milvus's own BM25 has no variant {self.bm25.variant} with k1 = {self.bm25.k1:g}",
                hint="leave -o scoring=milvus out, or give -o bm25.variant=lucene and a k1 above 0",
            )

    @property
    def lexical_field(self) -> VectorField:
        """Milvus's formula has the factor k1 + 1 that ours leaves out; the order is the same."""
        if self.scoring == "dgpo":
            return VectorField(_WORDS, None, _SPARSE_INDEX, "IP")
        filters: list[Any] = ["lowercase"]
        if self.bm25.stopwords != "none":
            filters.append({"type": "stop", "stop_words": sorted(stop_words(self.bm25.stopwords))})
        if self.bm25.stemmer != "none":
            filters.append({"type": "stemmer", "language": self.bm25.stemmer})
        build = {"bm25_k1": self.bm25.k1, "bm25_b": self.bm25.b}
        return VectorField(_WORDS, None, _SPARSE_INDEX, "BM25", build, {"tokenizer": "standard", "filter": filters})

    def dense_field(self, rows: int, dimensions: int) -> VectorField:
        index, build = self.dense_index, self.build
        if index == "auto":
            exact = rows <= EXACT_UP_TO or (self.uri is not None and is_embedded(self.uri))
            index, build = (_FLAT, {}) if exact else ("HNSW", {"M": 16, "efConstruction": 200} | build)
        return VectorField(_VECTOR, dimensions, index, "IP", build)


class MilvusRetriever:
    Config = MilvusConfig
    LIBRARIES = ("pymilvus", "milvus-lite", "bm25s", "PyStemmer", "torch", "transformers", "numpy")

    @staticmethod
    def build(
        directory: Path, store: PassageStore, config: MilvusConfig, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Load a collection named by what is in it. One that is there goes on where it ends.

        Raises RetrievalError where the server fails, or does not hold every row in the end; InputError for a corpus
        without words.
        """
        check_reachable(config)
        fields: list[VectorField] = []
        state: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        if config.mode != "dense":
            fields.append(config.lexical_field)
            if config.scoring == "milvus":
                parts["text"] = True
            else:
                counts, state["bm25"] = count_passages(directory, store, config.bm25, progress)
                parts["words"] = (_WORDS, counts, config.bm25)
        if config.mode != "bm25":
            encoder = Encoder(config.dense)
            truncated = encode_passages(directory, store, encoder, config.dense, progress)
            vectors = open_vectors(directory, len(store))
            fields.append(config.dense_field(*vectors.shape))
            parts["vectors"] = (_VECTOR, vectors)
            state["dense"] = encoder_state(encoder) | {"truncated_passages": truncated, "factory": fields[-1].index}
        content = identity(directory, as_record(fields), asdict(config.bm25), config.dense.max_length, state)
        state["collection"] = f"{config.collection}_{content}"
        assert config.uri is not None, "check_reachable refuses none"
        collection = MilvusCollection(config.uri, state["collection"], create=True)
        rows = CollectionRows(store, **parts)
        load(collection, fields, rows, shards=config.shards, replicas=config.replicas, progress=progress)
        if config.mode != "bm25":
            state["dense"][KEY] = probe(encoder, store[0].contents)
            if fields[-1].index != _FLAT:
                state["dense"]["measured"] = _measured(collection, store, config, encoder, vectors)
            (directory / files.FILE).unlink()
        if "words" in parts:
            shutil.rmtree(directory / COUNTS)
        return state

    def __init__(self, directory: Path, store: PassageStore, config: MilvusConfig, state: Mapping[str, Any]) -> None:
        assert config.uri is not None, "an index was built with an address"
        self._store, self._config = store, config
        self._collection = MilvusCollection(config.uri, state["collection"])
        again = "give the command that built the index again with --overwrite, which loads what is missing"
        if not self._collection.exists():
            raise RetrievalError(f"{config.uri} has no collection {state['collection']}", hint=again)
        self._collection.load(config.replicas)
        found = self._collection.count()
        if found != len(store):
            raise RetrievalError(
                f"collection {state['collection']} has {found} rows, the index {directory} holds {len(store)} passages",
                hint=again,
            )
        for row in sorted({len(store) * n // _CHECKED for n in range(_CHECKED)}):
            self._require_same(row, row + 1)
        if config.mode != "bm25":
            self._encoder = encoder_of(directory, config.dense, state["dense"])
            self._dense_index = state["dense"]["factory"]
        if config.mode != "dense" and config.scoring == "dgpo":
            self._words = words_of(config.bm25, state.get("bm25", {}))
            words = read_record(directory / VOCABULARY, texts(), hint=again, error=RetrievalError, most=1 << 30)
            self._vocabulary = {word: place for place, word in enumerate(words)}

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        k = min(k, len(self._store))
        if self._config.mode == "bm25":
            best = self._lexical(queries, k)
        elif self._config.mode == "dense":
            best = self._dense(queries, k)
        else:
            depth = min(max(k, self._config.depth), len(self._store))
            rankings = zip(self._lexical(queries, depth), self._dense(queries, depth), strict=True)
            best = [fuse([lexical[0], dense[0]], self._config.rrf_k, k) for lexical, dense in rankings]
        return [hits(self._store, rows, scores) for rows, scores in best]

    def verify(self, progress: Progress | None = None) -> None:
        """Read every row of the collection. Raises RetrievalError at the first that is not the index's passage."""
        self._require_same(0, len(self._store), progress)

    def _require_same(self, start: int, stop: int, progress: Progress | None = None) -> None:
        if (wrong := first_wrong(self._collection, self._store, start, stop, progress)) is not None:
            raise RetrievalError(
                f"row {wrong} of collection {self._collection.name} is missing or not passage "
                f"{self._store[wrong].id!r} of the index",
                hint="it holds another corpus, or was changed: build the index again with --overwrite",
            )

    def _lexical(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._config.scoring == "milvus":
            found = self._found([query.strip() or None for query in queries], _WORDS, k, exact=True)
            return [(rows, np.abs(scores)) for rows, scores in found]  # milvus-lite gives them below zero
        asked = [Counter(self._vocabulary[w] for w in self._words.query(q) if w in self._vocabulary) for q in queries]
        weights = [{word: float(number) for word, number in words.items()} or None for words in asked]
        return self._found(weights, _WORDS, k, exact=True)

    def _dense(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        asked = [query for query in queries if query.strip()]
        vectors = iter(self._encoder.encode(asked, self._encoder.conventions.query_prefix))
        return self._found(
            [next(vectors) if query.strip() else None for query in queries],
            _VECTOR, k, exact=self._dense_index == _FLAT, params=_search_params(self._dense_index, self._config, k),
        )  # fmt: skip

    def _found(
        self, queries: Sequence[Any], name: str, k: int, *, exact: bool, params: Mapping[str, Any] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """None is a query of nothing, and finds nothing."""
        asked = [query for query in queries if query is not None]
        answers = iter(self._collection.search(name, asked, k, exact=exact, params=params))
        nothing = (np.zeros(0, dtype=np.int64), np.zeros(0))
        return [nothing if query is None else next(answers) for query in queries]


def check_reachable(config: MilvusConfig) -> None:
    """To be called before long work. Raises ConfigError without an address, RetrievalError if nothing answers."""
    if config.uri is None:
        raise ConfigError(
            "the milvus retriever needs an address",
            hint="give --uri FILE.db for a file of this machine, or --uri http://host:19530 for a server",
        )
    connect(config.uri, create=True)


def _search_params(index: str, config: MilvusConfig, k: int) -> dict[str, Any]:
    if index != "HNSW":
        return dict(config.search)
    return config.search | {"ef": max(int(config.search.get("ef", _LEAST_EF)), k)}


def _measured(
    collection: MilvusCollection, store: PassageStore, config: MilvusConfig, encoder: Encoder, vectors: np.ndarray
) -> dict[str, Any]:
    """The share of the exact best RECALL_AT that an approximate index finds."""
    queries = sample_queries(store, encoder)
    params = _search_params(config.dense_field(*vectors.shape).index, config, RECALL_AT)
    found = collection.search(_VECTOR, list(queries), RECALL_AT, exact=False, params=params)
    exact = ExactSearch(vectors).search(queries, RECALL_AT)
    shares = [len(set(a[0]) & set(b[0])) / len(b[0]) for a, b in zip(found, exact, strict=True)]
    return {"recall": float(np.mean(shares)), "sample": len(queries)}
