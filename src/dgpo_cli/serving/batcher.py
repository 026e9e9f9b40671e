"""Queries of many clients, searched together: one call of the engine at a time, no query twice.

Queries are grouped by k and never cut from a larger k, so an answer is what a call with that k gives. An engine whose
scores do not depend on what else is in a batch (BM25) answers exactly as in process; a dense encoder rounds by batch,
in process and here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dgpo_cli.core.types import Hit
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.serving.cache import Cache, Key
from dgpo_cli.serving.metrics import Metrics
from dgpo_cli.serving.settings import ServeSettings


class Busy(RetrievalError):
    """More queries wait than the settings allow."""


# A failure is a result like any other: it goes to everyone who waits, and a future nobody reads says nothing.
Outcome = list[Hit] | Exception


class Batcher:
    """`run` must be running for `search` to return."""

    def __init__(self, retriever: Retriever, settings: ServeSettings, metrics: Metrics) -> None:
        self._retriever, self._settings, self._metrics = retriever, settings, metrics
        self._cache = Cache(settings.cache_passages)
        self._asked: dict[Key, asyncio.Future[Outcome]] = {}  # waiting, or in the engine
        self._waiting: deque[Key] = deque()
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """What the retriever's own `search` returns. Raises what it raises, and Busy."""
        known: dict[str, list[Hit]] = {}
        unknown: list[str] = []
        for query in dict.fromkeys(queries):
            found = [] if not query.strip() else self._cache.get((query, k))
            if found is None:
                unknown.append(query)
            else:
                known[query] = found
        self._metrics.queries += len(queries)
        self._metrics.cache_hits += sum(bool(query.strip()) and query in known for query in queries)
        if unknown:
            futures = self._ask([(query, k) for query in unknown])
            await asyncio.wait(futures)  # unlike gather, it leaves them to the others if this client goes away
            for query, future in zip(unknown, futures, strict=True):
                outcome = future.result()
                if isinstance(outcome, Exception):
                    raise outcome
                known[query] = outcome
        return [known[query] for query in queries]

    def _ask(self, keys: Sequence[Key]) -> list[asyncio.Future[Outcome]]:
        fresh = [key for key in keys if key not in self._asked]
        if self._waiting and len(self._waiting) + len(fresh) > self._settings.max_waiting:
            raise Busy(f"{len(self._waiting)} queries wait already, at most {self._settings.max_waiting} may")
        loop = asyncio.get_running_loop()
        self._asked |= {key: loop.create_future() for key in fresh}
        self._waiting.extend(fresh)
        self._arrived.set()
        return [self._asked[key] for key in keys]

    async def run(self) -> None:
        """Search for what is asked, until cancelled."""
        try:
            while True:
                if not self._waiting:
                    self._arrived.clear()
                    await self._arrived.wait()
                    # Nobody was served just now, so others may be about to ask; a busy engine needs no such pause.
                    await asyncio.sleep(self._settings.batch_wait_ms / 1000)
                count = min(len(self._waiting), self._settings.batch_queries)
                keys = [self._waiting.popleft() for _ in range(count)]
                for k in dict.fromkeys(k for _, k in keys):
                    await self._search([key for key in keys if key[1] == k], k)
        finally:
            self._engine.shutdown(wait=False, cancel_futures=True)

    async def _search(self, keys: Sequence[Key], k: int) -> None:
        self._metrics.batches.observe(len(keys))
        queries = [query for query, _ in keys]
        outcomes: Sequence[Outcome]
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._engine, self._retriever.search, queries, k)
            assert len(outcomes) == len(keys), f"{len(outcomes)} answers to {len(keys)} queries"
        except Exception as error:  # it reaches everyone who asked; the server goes on
            self._metrics.search_errors += 1
            outcomes = [error] * len(keys)
        for key, outcome in zip(keys, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                self._cache.put(key, outcome)
            self._asked.pop(key).set_result(outcome)
        self._metrics.cached_answers, self._metrics.waiting = len(self._cache), len(self._waiting)
