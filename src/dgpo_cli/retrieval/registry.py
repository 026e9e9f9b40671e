"""Names of the retrievers that keep an index on disk."""

from __future__ import annotations

from dgpo_cli.core import registry
from dgpo_cli.retrieval.base import IndexedRetriever

RETRIEVERS: dict[str, str] = {
    "bm25": "dgpo_cli.retrieval.bm25:BM25Retriever",
    "rank-bm25": "dgpo_cli.retrieval.rank_bm25:RankBM25Retriever",
    "dense": "dgpo_cli.retrieval.dense:DenseRetriever",
    "hybrid": "dgpo_cli.retrieval.hybrid:HybridRetriever",
    "milvus": "dgpo_cli.retrieval.milvus:MilvusRetriever",
}


def retriever_class(name: str) -> type[IndexedRetriever]:
    """The name stands in manifests, which come with an index. Raises ConfigError that lists the names."""
    found: type[IndexedRetriever] = registry.load(RETRIEVERS, name, "retriever", outside=False)
    return found
