"""Names of the retrievers: those that keep an index on disk, and those that a location alone opens."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TypeVar

from dgpo_cli.core import registry
from dgpo_cli.core.config import apply_options
from dgpo_cli.core.places import is_there
from dgpo_cli.retrieval.base import IndexedRetriever, ServedRetriever

RETRIEVERS: dict[str, str] = {
    "bm25": "dgpo_cli.retrieval.lexical.bm25:BM25Retriever",
    "rank-bm25": "dgpo_cli.retrieval.lexical.rank_bm25:RankBM25Retriever",
    "dense": "dgpo_cli.retrieval.dense.retriever:DenseRetriever",
    "hybrid": "dgpo_cli.retrieval.hybrid:HybridRetriever",
    "milvus": "dgpo_cli.retrieval.remote.milvus.retriever:MilvusRetriever",
}
SERVERS: dict[str, str] = {  # by the scheme of the address
    "http": "dgpo_cli.retrieval.remote.search_r1:RemoteRetriever",
    "https": "dgpo_cli.retrieval.remote.search_r1:RemoteRetriever",
}

Config = TypeVar("Config")


def retriever_class(name: str) -> type[IndexedRetriever]:
    """The name stands in manifests, which come with an index. Raises ConfigError that lists the names."""
    found: type[IndexedRetriever] = registry.load(RETRIEVERS, name, "retriever", outside=False)
    return found


def is_address(location: str | Path) -> bool:
    scheme, separator, _ = str(location).partition("://")
    return bool(separator) and scheme in SERVERS


def is_server(location: str | Path) -> bool:
    """Whether a location is no index folder: an address, or "package.module:Class", with its settings after a "?"."""
    outside = registry.is_outside(str(location).partition("?")[0]) and not is_there(str(location))
    return is_address(location) or outside


def served_retriever(location: str) -> ServedRetriever:
    """The retriever of a location for which `is_server` holds. Raises ConfigError."""
    scheme, _, _ = location.partition("://")
    name = scheme if is_address(location) else location.partition("?")[0]
    kind: type[ServedRetriever] = registry.load(SERVERS, name, "retriever", has=("open", "check", "search"))
    return kind.open(location)


def settings_of(location: str, kind: type[Config]) -> Config:
    """The settings after the "?" of a location, `count=5&language=de`, as the dataclass `kind`. Raises ConfigError."""
    query = location.partition("?")[2]
    return apply_options(kind, dict(urllib.parse.parse_qsl(query, keep_blank_values=True)))
