"""Limits on connections: how many, how long one may take over its headers and over reading its reply, and on the log.

A client that opens connections and says nothing costs a place each, and only for a while. The ceiling stays below the
number of files that the process may open, for a server that cannot accept a connection serves nobody.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dgpo_cli.serving.settings import ServeSettings

_OWN_FILES = 32  # beside those open when the server starts: its loop, replies of Milvus, files that are read
_A_MINUTE = 60.0
_LOGGED = 10  # records of one kind in a minute


def places(settings: ServeSettings) -> tuple[int, int]:
    """The most connections that may be open, and how many a turn of the event loop accepts.

    It accepts them before any of them can be refused, and further turns may pass until then.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return settings.max_connections, 128
    backlog = max(4, min(128, limit // 32))
    opened = Path("/proc/self/fd")
    held = sum(1 for _ in opened.iterdir()) if opened.is_dir() else _OWN_FILES
    return max(1, min(settings.max_connections, limit - held - _OWN_FILES - 4 * backlog)), backlog


def limited(settings: ServeSettings, most: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol within these limits."""

    class Limited(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
                return
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering():
                self._stop()
            else:
                self._await_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._answering():  # the next request was there already
                self._stop()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            self._read()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(settings.reply_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._read()
            super().resume_writing()

        def _answering(self) -> bool:
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request
            return cycle is not None and not cycle.response_complete

        def _await_headers(self) -> None:
            """From the first byte, or from the connection: later bytes do not lengthen it."""
            if self._timer is None and self.timeout_keep_alive_task is None:
                self._timer = self.loop.call_later(settings.header_timeout_s, self.transport.abort)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

    return Limited


class Bounded(logging.Filter):
    """A few records of one kind a minute; the first of the next minute tells how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._since = time.monotonic()
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since > _A_MINUTE:
            left_out = sum(max(0, count - _LOGGED) for count in self._seen.values())
            self._since = now
            self._seen.clear()
            if left_out:
                record.msg = f"({left_out} records like those before were left out) {record.msg}"
        kind = str(record.msg)[:100]
        self._seen[kind] += 1
        return self._seen[kind] <= _LOGGED


def bound_logs() -> None:
    """For this process: what a client can cause again and again does not fill a disk."""
    for name in ("asyncio", "uvicorn.error", *(f"dgpo_cli.serving.{module}" for module in ("agent", "app", "shared"))):
        log = logging.getLogger(name)
        if not any(isinstance(found, Bounded) for found in log.filters):
            log.addFilter(Bounded())
