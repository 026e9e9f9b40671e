"""One collection in Milvus: writing rows and searching them.

Its rows are those of the passage store. Each holds a hash of its passage, so that a collection over other passages is
seen for what it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from dgpo_cli.core.types import Passage
from dgpo_cli.retrieval.remote.milvus.connection import CONNECT_S, access, connect, told

ROW, HASH, TEXT = "row", "passage_hash", "text"
LONGEST_TEXT = 65_535  # bytes; Milvus's limit
MOST = 16_384  # hits of a query and rows of a query; Milvus takes no more
_TIES = 8  # hits asked for beyond k, to see whether the last one has equals
_DIGITS = 5  # of a score; what is behind them depends on where a row happens to be stored
_QUERIES = 64  # in one request, for which the time of a search is allowed
_WRITE_S = 300.0
_POLL_S = 1.0


def passage_hash(passage: Passage) -> int:
    """64 bits, signed as Milvus has them."""
    text = f"{passage.id}\0{passage.contents}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True, slots=True)
class VectorField:
    """A searchable field: its kind, and how Milvus indexes it. `dimensions` is None for a sparse one."""

    name: str
    dimensions: int | None
    index: str
    metric: str
    build: Mapping[str, Any] = field(default_factory=dict)
    analyzer: Mapping[str, Any] | None = None  # given where Milvus itself makes the field, by BM25 of the field TEXT


class MilvusCollection:
    """`timeout_s` is that of the access in force when it is opened."""

    def __init__(self, uri: str, name: str, *, create: bool = False) -> None:
        self.uri, self.name = uri, name
        self._client = connect(uri, create=create)
        self._timeout = access().timeout_s

    def exists(self) -> bool:
        with told(self.uri, "does not list its collections"):
            return bool(self._client.has_collection(self.name, timeout=CONNECT_S))

    def make(self, fields: Sequence[VectorField], *, shards: int, replicas: int) -> None:
        """Create what is missing of the collection and its indexes, and load it."""
        from pymilvus import DataType, Function, FunctionType

        client = self._client
        with told(self.uri, f"refused the collection {self.name}"):
            if not client.has_collection(self.name, timeout=CONNECT_S):
                schema = client.create_schema(auto_id=False)
                schema.add_field(ROW, DataType.INT64, is_primary=True)
                schema.add_field(HASH, DataType.INT64)
                for made in fields:
                    if made.analyzer is not None:
                        schema.add_field(
                            TEXT, DataType.VARCHAR, max_length=LONGEST_TEXT, enable_analyzer=True,
                            analyzer_params=dict(made.analyzer),
                        )  # fmt: skip
                        schema.add_function(Function("bm25", FunctionType.BM25, [TEXT], [made.name]))
                    if made.dimensions is None:
                        schema.add_field(made.name, DataType.SPARSE_FLOAT_VECTOR)
                    else:
                        schema.add_field(made.name, DataType.FLOAT_VECTOR, dim=made.dimensions)
                client.create_collection(self.name, schema=schema, num_shards=shards, timeout=_WRITE_S)
            there = set(client.list_indexes(self.name))
            for made in fields:
                if made.name not in there:
                    indexes = client.prepare_index_params()
                    indexes.add_index(
                        made.name, made.index, made.name, metric_type=made.metric, params=dict(made.build)
                    )
                    client.create_index(self.name, indexes, timeout=_WRITE_S)
        self.load(replicas)

    def load(self, replicas: int) -> None:
        with told(self.uri, f"cannot load the collection {self.name}"):
            self._client.load_collection(self.name, replica_number=replicas, timeout=_WRITE_S)

    def count(self) -> int:
        with told(self.uri, f"cannot count the collection {self.name}"):
            (found,) = self._client.query(
                self.name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=_WRITE_S
            )
        return int(found["count(*)"])

    def hashes(self, start: int, stop: int) -> dict[int, int]:
        """The hash of each passage of rows `start` to `stop`, at most MOST of them, that the collection holds."""
        with told(self.uri, f"cannot read the collection {self.name}"):
            found = self._client.query(
                self.name,
                filter=f"{ROW} >= {start} and {ROW} < {stop}",
                output_fields=[ROW, HASH],
                limit=stop - start,
                consistency_level="Strong",
                timeout=_WRITE_S,
            )
        return {int(one[ROW]): int(one[HASH]) for one in found}

    def write(self, rows: list[dict[str, Any]], *, replace: bool) -> None:
        """`replace` where some of the rows may be there already."""
        with told(self.uri, f"refused rows of the collection {self.name}"):
            (self._client.upsert if replace else self._client.insert)(self.name, rows, timeout=_WRITE_S)

    def finish(self) -> None:
        """Flush written rows to disk and have them indexed; a cluster indexes in the background."""
        with told(self.uri, f"cannot save the collection {self.name}"):
            self._client.flush(self.name, timeout=_WRITE_S)
            for index in self._client.list_indexes(self.name):
                while int((self._client.describe_index(self.name, index) or {}).get("pending_index_rows", 0)) > 0:
                    time.sleep(_POLL_S)

    def drop(self) -> None:
        with told(self.uri, f"cannot drop the collection {self.name}"):
            self._client.drop_collection(self.name, timeout=_WRITE_S)

    def search(
        self, name: str, queries: Sequence[Any], k: int, *, exact: bool, params: Mapping[str, Any] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and scores of the `k` best per query, best first, equal scores in row order.

        Which of several equal rows come back is left to where they are stored. So an `exact` search asks for more until
        all that equal the last one are there.
        """
        found: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        open_places, limit = list(range(len(queries))), min(k + _TIES if exact else k, MOST)
        while open_places and k > 0:
            still_open = []
            for start in range(0, len(open_places), _QUERIES):
                places = open_places[start : start + _QUERIES]
                asked = [queries[place] for place in places]
                for place, hits in zip(places, self._ask(name, asked, limit, params or {}), strict=True):
                    rows, scores = _in_order(hits)
                    found[place] = rows[:k], scores[:k]
                    if exact and len(hits) == limit < MOST and scores[k - 1] == scores[-1]:
                        still_open.append(place)
            open_places, limit = still_open, min(4 * limit, MOST)
        return found

    def _ask(self, name: str, queries: list[Any], limit: int, params: Mapping[str, Any]) -> list[Any]:
        with told(self.uri, f"cannot search the collection {self.name}"):
            found: list[Any] = self._client.search(
                self.name,
                queries,
                anns_field=name,
                limit=limit,
                output_fields=[ROW],
                search_params={"params": dict(params)},
                timeout=self._timeout,
            )
        return found


def _in_order(hits: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([hit[ROW] for hit in hits], dtype=np.int64)
    scores = np.round(np.array([hit["distance"] for hit in hits], dtype=np.float64), _DIGITS)
    groups = np.cumsum(np.diff(scores, prepend=scores[:1]) != 0)  # of equal scores; they come best first
    order = np.lexsort((rows, groups))
    return rows[order], scores[order]
