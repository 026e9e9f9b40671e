"""Queries of many clients, searched together: one call of the engine at a time, no query twice.

Requests take turns, one query each, and a call of the engine is bounded in queries and in characters, so that a large
request of long queries holds nobody up for longer than one call. What its client no longer waits for is dropped.

Queries are grouped by k and never cut from a larger k, so an answer is what a call with that k gives. An engine whose
scores do not depend on what else is in a batch (BM25) answers exactly as in process; a dense encoder rounds by batch,
in process and here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter

from cachetools import LRUCache

from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.serving.metrics import Metrics
from dgpo_cli.serving.settings import ServeSettings

Key = tuple[str, int]  # query, k
_CHARS_LIKE_A_PASSAGE = 1_000  # a query of so many characters costs as much as a passage


class Busy(RetrievalError):
    """More queries wait than the settings allow."""


# A failure is a result like any other: it goes to everyone who waits, and a future nobody reads says nothing.
Outcome = list[Hit] | Exception


@dataclass(slots=True)
class _Asked:
    """A query that somebody waits for."""

    future: asyncio.Future[Outcome]
    waiters: int = 0
    in_engine: bool = False


class Batcher:
    """`run` must be running for `search` to return."""

    def __init__(self, retriever: Retriever, settings: ServeSettings, metrics: Metrics) -> None:
        self._retriever, self._settings, self._metrics = retriever, settings, metrics
        self._cache: LRUCache[Key, tuple[int, list[Hit]]] = LRUCache(settings.cache_passages, getsizeof=itemgetter(0))
        self._asked: dict[Key, _Asked] = {}  # waiting, or in the engine
        self._waiting = 0  # of them, those that are not in the engine
        self._turns: deque[deque[Key]] = deque()  # what each request still waits for, the next one's first
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.failure: str | None = None  # of the last call of the engine

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The result of the retriever's own `search`. Raises its errors, and Busy; if cancelled, it drops its part."""
        known: dict[str, list[Hit]] = {}
        unknown: list[str] = []
        for query in dict.fromkeys(queries):
            if not query.strip():
                known[query] = []
            elif held := self._cache.get((query, k)):
                known[query] = held[1]
            else:
                unknown.append(query)
        self._metrics.queries.inc(len(queries))
        self._metrics.cache_hits.inc(sum(bool(query.strip()) and query in known for query in queries))
        if unknown:
            keys = [(query, k) for query in unknown]
            asked = self._ask(keys)
            try:
                await asyncio.wait([one.future for one in asked])  # unlike gather, it leaves them to the others
            finally:
                self._leave(keys, asked)
            for query, one in zip(unknown, asked, strict=True):
                outcome = one.future.result()
                if isinstance(outcome, Exception):
                    raise outcome
                known[query] = outcome
        return [known[query] for query in queries]

    def _ask(self, keys: Sequence[Key]) -> list[_Asked]:
        fresh = [key for key in keys if key not in self._asked]
        if self._waiting and self._waiting + len(fresh) > self._settings.max_waiting:
            raise Busy(f"{self._waiting} queries wait already, at most {self._settings.max_waiting} may")
        loop = asyncio.get_running_loop()
        self._asked |= {key: _Asked(loop.create_future()) for key in fresh}
        self._waiting += len(fresh)
        asked = [self._asked[key] for key in keys]
        for one in asked:
            one.waiters += 1
        self._turns.append(deque(keys))
        self._arrived.set()
        return asked

    def _leave(self, keys: Sequence[Key], asked: Sequence[_Asked]) -> None:
        """One waiter fewer of each; a query that nobody waits for any more is not searched for."""
        for key, one in zip(keys, asked, strict=True):
            one.waiters -= 1
            if not one.waiters and not one.in_engine and not one.future.done():
                del self._asked[key]
                self._waiting -= 1
                self._metrics.abandoned.inc()

    async def run(self) -> None:
        """Search for what is asked, until cancelled."""
        try:
            while True:
                if not self._waiting:
                    self._turns.clear()
                    self._arrived.clear()
                    await self._arrived.wait()
                    # Nobody was served just now, so others may be about to ask; a busy engine needs no such pause.
                    await asyncio.sleep(self._settings.batch_wait_ms / 1000)
                keys = self._next_batch()
                for k in dict.fromkeys(k for _, k in keys):
                    await self._search([key for key in keys if key[1] == k], k)
        finally:
            self._engine.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> list[Key]:
        """One query of each request in turn, as many as one call of the engine may have, and one at least."""
        keys: list[Key] = []
        characters = 0
        while self._turns and len(keys) < self._settings.batch_queries:
            request = self._turns[0]
            while request and ((one := self._asked.get(request[0])) is None or one.in_engine):
                request.popleft()  # answered, dropped, or taken for another request
            if not request:
                self._turns.popleft()
                continue
            characters += len(request[0][0])
            if keys and characters > self._settings.batch_chars:
                break
            key = request.popleft()
            self._asked[key].in_engine = True
            keys.append(key)
            self._turns.rotate(-1)
        self._waiting -= len(keys)
        return keys

    async def _search(self, keys: Sequence[Key], k: int) -> None:
        self._metrics.batches.observe(len(keys))
        queries = [query for query, _ in keys]
        outcomes: Sequence[Outcome]
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._engine, self._retriever.search, queries, k)
            assert len(outcomes) == len(keys), f"{len(outcomes)} answers to {len(keys)} queries"
            self.failure = None
        except Exception as error:  # it reaches everyone who asked; the server goes on
            self._metrics.search_errors.inc()
            self.failure = error.message if isinstance(error, RetrievalError) else type(error).__name__
            outcomes = [error] * len(keys)
        for key, outcome in zip(keys, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                with suppress(ValueError):  # larger than the whole cache
                    self._cache[key] = _cost(key, outcome), outcome
            self._asked.pop(key).future.set_result(outcome)
        self._metrics.cached_answers.set(len(self._cache))
        self._metrics.waiting.set(self._waiting)


def _cost(key: Key, hits: list[Hit]) -> int:
    """The cost of a cached answer against `cache_passages`: its passages and one, and more for a long query."""
    return 1 + len(hits) + len(key[0]) // _CHARS_LIKE_A_PASSAGE
