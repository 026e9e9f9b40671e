"""The connection to Milvus: where it is, the token, and its errors as ours.

An address is a server's (http://host:19530) or a file's (FILE.db, which milvus-lite opens in this process).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo_cli.core.extras import require
from dgpo_cli.core.http import server_address
from dgpo_cli.errors import ConfigError, RetrievalError

CONNECT_S = 10.0
# pymilvus pings every 10 seconds, and gRPC's servers, milvus-lite's among them, hang up on that after a while without
# a call: in the middle of encoding, or of a training step.
_CALM = {"grpc.keepalive_time_ms": 310_000, "grpc.keepalive_permit_without_calls": 0}


@dataclass(frozen=True, slots=True)
class MilvusAccess:
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0  # of a search


_access = MilvusAccess()


def access() -> MilvusAccess:
    return _access


def use_access(access: MilvusAccess) -> None:
    """Set the access of all later connections. For the command line, which alone knows tokens: no index records one."""
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
    parsed = server_address(uri)
    if parsed is None:
        raise ConfigError(f"uri = {uri!r} is no address of a Milvus server", hint=allowed)
    if parsed.username is not None or parsed.password is not None or parsed.query:
        raise ConfigError(
            "the address of the Milvus server holds a name, a password or a query, which the index would keep",
            hint="leave them out, and put TOKEN or USER:PASSWORD into the environment variable DGPO_MILVUS_TOKEN",
        )
    return uri.rstrip("/")


def connect(uri: str, *, create: bool = False) -> Any:
    """A pymilvus client. Raises RetrievalError where nothing answers, or for a file that is not there or not Milvus's.

    `create` lets milvus-lite make a file that is not there.
    """
    for module in ("pymilvus", "milvus_lite") if is_embedded(uri) else ("pymilvus",):
        require(module, "milvus", "Milvus", RetrievalError)
    if is_embedded(uri):
        _require_database(Path(uri), create)
    from pymilvus import MilvusClient

    # Failures are reported once, by our errors, and not in the middle of --json.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    with _causes() as causes, told(uri, "cannot be reached", causes):
        client = MilvusClient(uri, token=_access.token or "", timeout=CONNECT_S, grpc_options=_CALM)
        client.get_server_version(timeout=CONNECT_S)  # connections are kept, also to a server that has gone
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


class _KeptErrors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(str(record.exc_info[1]) if record.exc_info and record.exc_info[1] else record.getMessage())


@contextmanager
def _causes() -> Iterator[list[str]]:
    """What milvus-lite logs instead of raising: why a database cannot be opened."""
    logger, kept = logging.getLogger("milvus_lite"), _KeptErrors()
    logger.addHandler(kept)
    before, logger.propagate = logger.propagate, False
    try:
        yield kept.errors
    finally:
        logger.removeHandler(kept)
        logger.propagate = before


@contextmanager
def told(uri: str, what: str, causes: Sequence[str] = ()) -> Iterator[None]:
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
