"""One collection in Milvus: the connection to it, what goes in, what comes back. Nothing else here knows pymilvus.

An address is a server's (http://host:19530) or a file's (FILE.db, which milvus-lite opens in this process). Rows of a
collection are those of the passage store, and each holds a hash of its passage, so that a collection over other
passages is seen for what it is.
"""

from __future__ import annotations

import logging
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError

INSTALL = "pip install 'dgpo-cli[milvus]'"
ROW, HASH, TEXT = "row", "passage_hash", "text"
LONGEST_TEXT = 65_535  # bytes; Milvus's limit
MOST = 16_384  # hits of a query, rows of a query and queries of a request; Milvus takes no more
_TIES = 8  # hits asked for beyond k, to see whether the last one has equals
_DIGITS = 5  # of a score; what is behind them depends on where a row happens to be stored
_QUERIES = 64  # in one request, for which the time of a search is allowed
_CONNECT_S = 10.0
_WRITE_S = 300.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class MilvusAccess:
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0  # of a search


_access = MilvusAccess()


def use_access(access: MilvusAccess) -> None:
    """How servers are asked from now on. For the command line, which alone knows of tokens: no index records one."""
    global _access
    _access = access


def is_embedded(uri: str) -> bool:
    return "://" not in uri


def checked_uri(uri: str) -> str:
    """An address with its path made absolute. Raises ConfigError for one that Milvus cannot have."""
    allowed = "give --uri FILE.db for a file of this machine, or --uri http://host:19530 for a server"
    if is_embedded(uri):
        if re.fullmatch(r"[\w.-]+:\d+", uri):
            raise ConfigError(f"uri = {uri!r} has no scheme", hint=f"give --uri http://{uri}")
        if not uri.endswith(".db") or uri == ".db":
            raise ConfigError(f"uri = {uri!r} is neither a file FILE.db nor a server's address", hint=allowed)
        return str(Path(uri).resolve())
    try:
        parsed = urllib.parse.urlsplit(uri)
        whole = parsed.scheme in ("http", "https") and parsed.hostname and (parsed.port or 1) > 0
    except ValueError:  # a port that is no number
        raise ConfigError(f"uri = {uri!r} is no address of a Milvus server", hint=allowed) from None
    if parsed.username is not None or parsed.password is not None or parsed.query:
        raise ConfigError(
            "the address of the Milvus server holds a name, a password or a query, which the index would keep",
            hint="leave them out, and put TOKEN or USER:PASSWORD into the environment variable DGPO_MILVUS_TOKEN",
        )
    if not whole:
        raise ConfigError(f"uri = {uri!r} is no address of a Milvus server", hint=allowed)
    return uri.rstrip("/")


def passage_hash(passage: Passage) -> int:
    """64 bits, signed as Milvus has them."""
    text = f"{passage.id}\0{passage.contents}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def connect(uri: str, *, create: bool = False) -> Any:
    """A pymilvus client. Raises RetrievalError where nothing answers, or for a file that is not there or not Milvus's.

    `create` lets milvus-lite make a file that is not there.
    """
    if find_spec("pymilvus") is None or (is_embedded(uri) and find_spec("milvus_lite") is None):
        missing = "milvus-lite" if find_spec("pymilvus") is not None else "pymilvus"
        raise RetrievalError(f"Milvus needs the package {missing}, which is not installed", hint=INSTALL)
    if is_embedded(uri):
        _require_database(Path(uri), create)
    from pymilvus import MilvusClient

    # What goes wrong is told once, by our errors, and not in the middle of --json.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    with _causes() as causes, _told(uri, "cannot be reached", causes):
        client = MilvusClient(uri, token=_access.token or "", timeout=_CONNECT_S)
        client.get_server_version(timeout=_CONNECT_S)  # connections are kept, also to a server that has gone
        return client


def _require_database(path: Path, create: bool) -> None:
    again = "give another FILE.db, or move it away"
    if path.is_file():
        raise RetrievalError(f"{path} is a file, and milvus-lite keeps a database in a folder", hint=again)
    if path.is_dir() and any(path.iterdir()) and not (path / "collections").is_dir():
        raise RetrievalError(f"{path} is a folder without a Milvus database", hint=again)
    if not create and not path.is_dir():
        raise RetrievalError(
            f"{path}, where the index keeps its rows, is not there", hint="put it back, or build again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(str(record.exc_info[1]) if record.exc_info and record.exc_info[1] else record.getMessage())


@contextmanager
def _causes() -> Iterator[list[str]]:
    """What milvus-lite logs instead of raising: why a database cannot be opened."""
    logger, kept = logging.getLogger("milvus_lite"), _Kept()
    logger.addHandler(kept)
    before, logger.propagate = logger.propagate, False
    try:
        yield kept.errors
    finally:
        logger.removeHandler(kept)
        logger.propagate = before


@contextmanager
def _told(uri: str, what: str, causes: Sequence[str] = ()) -> Iterator[None]:
    """Errors of pymilvus, and of gRPC beneath it, as RetrievalError."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        reason = next(iter(causes), "") or _reason(error)
        hint = "start the server, or check the address and the token (environment variable DGPO_MILVUS_TOKEN)"
        if is_embedded(uri):
            hint = "only one process at a time can open a file: end the other one, or let `dgpo serve` share the index"
        raise RetrievalError(f"Milvus at {uri} {what}: {' '.join(reason.split())[:300]}", hint=hint) from error


def _reason(error: Exception) -> str:
    import grpc

    if isinstance(error, grpc.Call):
        return f"{error.code().name}, {error.details()}"
    return getattr(error, "message", "") or str(error) or type(error).__name__


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
        self._timeout = _access.timeout_s

    def exists(self) -> bool:
        with _told(self.uri, "does not tell its collections"):
            return bool(self._client.has_collection(self.name, timeout=_CONNECT_S))

    def make(self, fields: Sequence[VectorField], *, shards: int, replicas: int) -> None:
        """Create what is missing of the collection and its indexes, and load it."""
        from pymilvus import DataType, Function, FunctionType

        client = self._client
        with _told(self.uri, f"refused the collection {self.name}"):
            if not client.has_collection(self.name, timeout=_CONNECT_S):
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
        with _told(self.uri, f"cannot load the collection {self.name}"):
            self._client.load_collection(self.name, replica_number=replicas, timeout=_WRITE_S)

    def count(self) -> int:
        with _told(self.uri, f"cannot count the collection {self.name}"):
            (found,) = self._client.query(
                self.name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=_WRITE_S
            )
        return int(found["count(*)"])

    def hashes(self, start: int, stop: int) -> dict[int, int]:
        """The hash of each passage of rows `start` to `stop`, at most MOST of them, that the collection holds."""
        with _told(self.uri, f"cannot read the collection {self.name}"):
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
        with _told(self.uri, f"refused rows of the collection {self.name}"):
            (self._client.upsert if replace else self._client.insert)(self.name, rows, timeout=_WRITE_S)

    def finish(self) -> None:
        """Have what was written put on disk and indexed; a cluster does the latter in its own time."""
        with _told(self.uri, f"cannot save the collection {self.name}"):
            self._client.flush(self.name, timeout=_WRITE_S)
            for index in self._client.list_indexes(self.name):
                while int((self._client.describe_index(self.name, index) or {}).get("pending_index_rows", 0)) > 0:
                    time.sleep(_POLL_S)

    def drop(self) -> None:
        with _told(self.uri, f"cannot drop the collection {self.name}"):
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
        with _told(self.uri, f"cannot search the collection {self.name}"):
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
