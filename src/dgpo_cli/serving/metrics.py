"""Counters of a server, in the text format of Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One set for each server, not the process-wide one of the library."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self.requests = counter("dgpo_requests", "Requests to /retrieve by status.", ["status"])
        self.request_errors = counter("dgpo_request_errors", "Requests with a status of 400 or more.")
        self.seconds = histogram("dgpo_request_seconds", "Seconds from request to reply.", buckets=SECONDS)
        self.in_flight = gauge("dgpo_requests_in_flight", "Requests that wait for their reply.")
        self.queries = counter("dgpo_queries", "Queries asked.")
        self.cache_hits = counter("dgpo_cache_hits", "Queries answered from the cache.")
        self.cached_answers = gauge("dgpo_cached_answers", "Answers in the cache.")
        self.waiting = gauge("dgpo_waiting_queries", "Queries that wait for the engine.")
        self.abandoned = counter("dgpo_abandoned_queries", "Queries dropped since nobody waited.")
        self.batches = histogram("dgpo_batch_queries", "Queries in one call of the engine.", buckets=QUERIES)
        self.search_errors = counter("dgpo_search_errors", "Calls of the engine that failed.")
        self.questions = counter("dgpo_questions", "Questions to the agent by how they ended.", ["end"])
        self.question_errors = counter("dgpo_question_errors", "Questions that ended with an error.")
        self.question_seconds = histogram("dgpo_question_seconds", "Seconds to a whole answer.", buckets=LONG_SECONDS)
        self.first_seconds = histogram("dgpo_first_text_seconds", "Seconds to the first text.", buckets=LONG_SECONDS)
        self.tokens = counter("dgpo_tokens", "Tokens of answered questions, read and written.", ["kind"])
        self.episodes = gauge("dgpo_episodes", "Questions that are being answered.")
        self.questions_waiting = gauge("dgpo_waiting_questions", "Questions that wait for a place.")
        self.dropped = counter("dgpo_dropped_questions", "Questions whose client left before the end.")

    def finished(self, status: int, seconds: float) -> None:
        self.requests.labels(status).inc()
        self.request_errors.inc(status >= 400)
        self.seconds.observe(seconds)

    def answered(self, end: str, seconds: float, *, failed: bool = False) -> None:
        self.questions.labels(end).inc()
        self.question_errors.inc(failed)
        self.question_seconds.observe(seconds)

    def total(self, name: str) -> int:
        """The sum of all samples of this name, over their labels."""
        return sum(int(s.value) for metric in self._registry.collect() for s in metric.samples if s.name == name)

    def text(self) -> str:
        return generate_latest(self._registry).decode()
