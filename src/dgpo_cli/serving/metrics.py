"""What a server counts, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum, self.count = 0.0, 0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
        self.count += 1

    def lines(self, name: str) -> list[str]:
        """Cumulative buckets, as Prometheus wants them."""
        made, below = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            made.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*made, f"{name}_sum {self.sum!r}", f"{name}_count {self.count}"]


class Metrics:
    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()  # by status
        self.seconds = Histogram(SECONDS)
        self.batches = Histogram(QUERIES)
        self.in_flight = self.queries = self.cache_hits = self.search_errors = 0
        self.cached_answers = self.waiting = self.abandoned = 0

    def finished(self, status: int, seconds: float) -> None:
        self.requests[status] += 1
        self.seconds.observe(seconds)

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.requests.items() if status >= 400)

    def text(self) -> str:
        by_status = [f'dgpo_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())]
        parts = [
            ("dgpo_requests_total", "counter", "Requests to /retrieve by status.", by_status),
            ("dgpo_request_errors_total", "counter", "Requests with a status of 400 or more.", self.errors),
            ("dgpo_request_seconds", "histogram", "Seconds from request to reply.", self.seconds),
            ("dgpo_requests_in_flight", "gauge", "Requests that wait for their reply.", self.in_flight),
            ("dgpo_queries_total", "counter", "Queries asked.", self.queries),
            ("dgpo_cache_hits_total", "counter", "Queries answered from the cache.", self.cache_hits),
            ("dgpo_cached_answers", "gauge", "Answers in the cache.", self.cached_answers),
            ("dgpo_waiting_queries", "gauge", "Queries that wait for the engine.", self.waiting),
            ("dgpo_abandoned_queries_total", "counter", "Queries dropped since nobody waited.", self.abandoned),
            ("dgpo_batch_queries", "histogram", "Queries in one call of the engine.", self.batches),
            ("dgpo_search_errors_total", "counter", "Calls of the engine that failed.", self.search_errors),
        ]
        lines: list[str] = []
        for name, kind, meaning, value in parts:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            if isinstance(value, Histogram):
                lines += value.lines(name)
            else:
                lines += value if isinstance(value, list) else [f"{name} {value}"]
        return "\n".join(lines) + "\n"
