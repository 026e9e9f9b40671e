"""The parts of a search server: what is asked together, what is kept, what is counted."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.evaluation.suite import parse_indexes
from dgpo_cli.serving.app import SearchServer
from dgpo_cli.serving.batcher import Batcher, Busy
from dgpo_cli.serving.connections import bound_logs, places
from dgpo_cli.serving.metrics import Metrics
from dgpo_cli.serving.probe import Probe
from dgpo_cli.serving.settings import ServeSettings


class Echo:
    """Finds passages named after the query; `asked` holds every call. It waits for `gate`, and fails on "broken"."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        assert self.gate.wait(10)
        self.asked.append((list(queries), k))
        if "broken" in queries:
            raise RetrievalError("the index is damaged")
        return [answer(query, k) for query in queries]


def answer(query: str, k: int) -> list[Hit]:
    return [Hit(Passage(f"{query} {rank}", query), 1 / rank, rank) for rank in range(1, k + 1)]


def running(
    body: Callable[[Batcher, Echo], Coroutine[Any, Any, None]], metrics: Metrics | None = None, **settings: float
) -> None:
    """Run `body` beside a batcher over an Echo."""

    async def run() -> None:
        echo = Echo()
        made = ServeSettings(**({"batch_wait_ms": 20.0} | settings))  # type: ignore[arg-type]
        batcher = Batcher(echo, made, metrics or Metrics())
        task = asyncio.create_task(batcher.run())
        try:
            await asyncio.wait_for(body(batcher, echo), 10)
        finally:
            task.cancel()

    asyncio.run(run())


def test_requests_at_once_are_one_call_per_k_and_no_query_twice() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        answers = await asyncio.gather(
            batcher.search(["a", "b", "a"], 2), batcher.search(["b", "c"], 2), batcher.search(["a", " "], 3)
        )
        assert answers[0] == [answer("a", 2), answer("b", 2), answer("a", 2)]
        assert answers[1] == [answer("b", 2), answer("c", 2)]
        assert answers[2] == [answer("a", 3), []]
        assert echo.asked == [(["a", "b", "c"], 2), (["a"], 3)]

    running(body)


def test_a_batch_is_no_larger_than_the_engine_takes() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        queries = [str(number) for number in range(7)]
        assert await batcher.search(queries, 1) == [answer(query, 1) for query in queries]
        assert [len(asked) for asked, _ in echo.asked] == [3, 3, 1]

    running(body, batch_queries=3)


def test_what_arrives_while_the_engine_works_is_the_next_call() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        echo.gate.clear()
        first = asyncio.create_task(batcher.search(["a"], 1))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(batcher.search([query], 1)) for query in ("b", "a", "c")]
        await asyncio.sleep(0.1)
        echo.gate.set()
        await asyncio.gather(first, *others)
        assert echo.asked == [(["a"], 1), (["b", "c"], 1)], "`a` was in the engine already"

    running(body)


def test_a_failure_reaches_everyone_who_asked_and_is_not_kept() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        both = await asyncio.gather(
            batcher.search(["a", "broken"], 1), batcher.search(["a"], 1), return_exceptions=True
        )
        assert [type(one) for one in both] == [RetrievalError, RetrievalError]
        assert await batcher.search(["a"], 1) == [answer("a", 1)]
        assert [queries for queries, _ in echo.asked] == [["a", "broken"], ["a"]]

    metrics = Metrics()
    running(body, metrics)
    assert metrics.total("dgpo_search_errors_total") == 1


def test_a_client_that_goes_away_takes_nobodys_answer() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        echo.gate.clear()
        leaving = asyncio.create_task(batcher.search(["a", "b"], 1))
        staying = asyncio.create_task(batcher.search(["b", "c"], 1))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.sleep(0.01)
        echo.gate.set()
        assert await staying == [answer("b", 1), answer("c", 1)]
        assert leaving.cancelled()

    running(body)


def test_too_many_waiting_queries_are_turned_away_and_one_large_request_is_not() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        echo.gate.clear()
        searching = asyncio.create_task(batcher.search(["a"], 1))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(batcher.search([str(number) for number in range(6)], 1))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="6 queries wait already, at most 4 may"):
            await batcher.search(["x"], 1)
        assert len(echo.asked) == 0
        echo.gate.set()
        assert len(await waiting) == 6 and len(await searching) == 1
        assert await batcher.search(["x"], 1) == [answer("x", 1)]

    running(body, max_waiting=4)


def test_requests_take_turns_and_a_call_is_bounded_in_characters() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        echo.gate.clear()
        large = asyncio.create_task(batcher.search([f"{n} " * 20 for n in range(9)], 1))
        await asyncio.sleep(0.1)
        small = asyncio.create_task(batcher.search(["small"], 1))
        await asyncio.sleep(0)
        echo.gate.set()
        assert await small == [answer("small", 1)]
        assert not large.done(), "it would have waited for all of the large one"
        assert len(await large) == 9
        assert [len(queries) for queries, _ in echo.asked] == [2, 2, 2, 2, 2]
        assert "small" in echo.asked[1][0]

    running(body, batch_chars=80)


def test_a_query_longer_than_a_call_may_hold_is_asked_alone() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        await batcher.search(["x" * 100, "y"], 1)
        assert [len(queries) for queries, _ in echo.asked] == [1, 1]

    running(body, batch_chars=10)


def test_what_nobody_waits_for_is_dropped_and_what_others_share_is_not() -> None:
    metrics = Metrics()

    async def body(batcher: Batcher, echo: Echo) -> None:
        echo.gate.clear()
        first = asyncio.create_task(batcher.search(["in the engine"], 1))
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(batcher.search([*map(str, range(50)), "shared"], 1))
        staying = asyncio.create_task(batcher.search(["shared"], 1))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        echo.gate.set()
        assert await staying == [answer("shared", 1)]
        await first
        assert [queries for queries, _ in echo.asked] == [["in the engine"], ["shared"]]
        assert metrics.total("dgpo_abandoned_queries_total") == 50
        assert await batcher.search(["7"], 1) == [answer("7", 1)], "dropped, not forgotten"

    running(body, metrics)


def test_health_tells_of_a_failing_engine_and_of_its_recovery() -> None:
    async def body(batcher: Batcher, _echo: Echo) -> None:
        with pytest.raises(RetrievalError):
            await batcher.search(["broken"], 1)
        assert batcher.failure == "the index is damaged"
        await batcher.search(["fine"], 1)
        assert batcher.failure is None

    running(body)


@pytest.mark.parametrize(("working", "status"), [(True, 200), (False, 503)])
def test_health_asks_what_lies_elsewhere(working: bool, status: int) -> None:
    asked = []

    def probe() -> None:
        asked.append(1)
        if not working:
            raise RetrievalError("Milvus at http://gone:19530 cannot be reached")

    batcher = Batcher(Echo(), ServeSettings(), Metrics())
    app = SearchServer(batcher, ServeSettings(), Metrics(), about={"digest": "d"}, probe=Probe("Milvus", probe)).app()
    with TestClient(app) as client:
        for _ in range(3):
            reply = client.get("/health")
            assert reply.status_code == status
            assert ("cannot be reached" in reply.text) is not working
    assert len(asked) == 1, "not for every request"


def test_the_log_is_bounded_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("dgpo_cli.serving.app")
    bound_logs()
    for _ in range(500):
        log.warning("the same")
    log.warning("another")
    assert [r.getMessage() for r in caplog.records].count("the same") == 10
    assert "another" in caplog.text


def test_places_stay_below_the_files_that_may_be_open() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most, backlog = places(ServeSettings(max_connections=10_000_000))
    assert 0 < most < limit - backlog
    assert places(ServeSettings(max_connections=3))[0] == 3


def test_kept_answers_are_not_asked_again_until_others_push_them_out() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        for query in ("a", "b", "a", "c", "a", "b"):  # room for two answers of one passage; `b` goes for `c`
            assert await batcher.search([query], 1) == [answer(query, 1)]
        assert [queries for queries, _ in echo.asked] == [["a"], ["b"], ["c"], ["b"]]

    metrics = Metrics()
    running(body, metrics, cache_passages=4, batch_wait_ms=0)
    assert [metrics.total(f"dgpo_{name}_total") for name in ("queries", "cache_hits")] == [6, 2]


def test_the_cache_is_bounded_by_what_its_answers_cost() -> None:
    """An answer costs its passages and one, and one for each thousand characters of its query."""
    long, metrics = "q" * 2_500, Metrics()

    async def body(batcher: Batcher, echo: Echo) -> None:
        for query, k in (("a", 3), (long, 1), ("a", 3), ("b", 3), (long, 1), ("c", 10), ("b", 3)):
            await batcher.search([query], k)
        # b (4) takes the place of the long query (4), the older one, and that again that of a; c (11) never fits.
        assert echo.asked == [(["a"], 3), ([long], 1), (["b"], 3), ([long], 1), (["c"], 10)]
        await batcher.search(["a"], 3)
        assert echo.asked[-1] == (["a"], 3)

    running(body, metrics, cache_passages=10, batch_wait_ms=0)
    assert metrics.total("dgpo_cached_answers") == 2


def test_without_a_cache_every_query_is_asked_again() -> None:
    async def body(batcher: Batcher, echo: Echo) -> None:
        for _ in range(2):
            assert await batcher.search(["a"], 1) == [answer("a", 1)]
        assert len(echo.asked) == 2

    running(body, cache_passages=0, batch_wait_ms=0)


def test_metrics_in_the_text_format_of_prometheus() -> None:
    metrics = Metrics()
    for status, seconds in ((200, 0.001), (200, 0.002), (503, 40.0)):
        metrics.finished(status, seconds)
    Metrics().finished(200, 1.0)  # of another server in this process
    lines = metrics.text().splitlines()
    assert 'dgpo_requests_total{status="200"} 2.0' in lines and 'dgpo_requests_total{status="503"} 1.0' in lines
    assert "dgpo_request_errors_total 1.0" in lines and metrics.total("dgpo_requests_total") == 3
    buckets = [line for line in lines if line.startswith("dgpo_request_seconds_bucket")]
    assert buckets[:2] == [
        'dgpo_request_seconds_bucket{le="0.001"} 1.0',
        'dgpo_request_seconds_bucket{le="0.0025"} 2.0',
    ]
    assert buckets[-2:] == ['dgpo_request_seconds_bucket{le="30.0"} 2.0', 'dgpo_request_seconds_bucket{le="+Inf"} 3.0']
    assert "dgpo_request_seconds_sum 40.003" in lines and "dgpo_request_seconds_count 3.0" in lines


@pytest.mark.parametrize("name", ["max_queries", "max_topk", "batch_queries", "stop_timeout_s"])
def test_limits_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = 0 is out of range"):
        ServeSettings(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a,http://b", {"nq": "http://a,http://b", "musique": "http://a,http://b"}),
        ("nq=http://a,http://b,musique=dir", {"nq": "http://a,http://b", "musique": "dir"}),
        ("http://a,http://b,nq=dir", {"nq": "dir", "musique": "http://a,http://b"}),
        ("nq=dir,http://a,http://b", {"nq": "dir", "musique": "http://a,http://b"}),
    ],
)
def test_addresses_in_a_row_are_servers_of_one_index(text: str, expected: dict[str, str]) -> None:
    assert parse_indexes(text, ("nq", "musique")) == expected


def test_an_address_and_a_folder_are_two_indexes() -> None:
    with pytest.raises(ConfigError, match="two indexes"):
        parse_indexes("http://a,dir", ("nq",))


def test_the_limits_in_the_docs_are_those_of_the_server() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = "".join((docs / name).read_text(encoding="utf-8") for name in ("how-to.md", "serve.md"))
    rows = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)?) \| ([0-9, ]+) \|", page, flags=re.MULTILINE)
    told = {
        name.strip("`"): float(value)
        for names, values in rows
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    limits = asdict(ServeSettings())
    for name in ("rerank", "rollout", "precision", "server"):
        del limits[name]
    assert told == limits
