"""Names of the retrievers. Each module has DEFAULTS, build(directory, store, settings) and a class."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dgpo_cli.core import registry

RETRIEVERS: dict[str, str] = {
    "bm25": "dgpo_cli.retrieval.bm25:BM25Retriever",
    "rank-bm25": "dgpo_cli.retrieval.rank_bm25:RankBM25Retriever",
    "dense": "dgpo_cli.retrieval.dense:DenseRetriever",
}


def retriever_class(name: str) -> Any:
    return registry.load(RETRIEVERS, name, "retriever")


def builder(name: str) -> ModuleType:
    """The module with DEFAULTS and build(). Raises ConfigError that lists the names."""
    from importlib import import_module

    return import_module(retriever_class(name).__module__)
