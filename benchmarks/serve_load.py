"""Load test of `dgpo serve` on this machine: many clients that ask without a pause, for a given time.

    python benchmarks/serve_load.py --index indexes/wiki --seconds 600

Starts the server itself, on a free loopback port. Every query is eight words of a passage, drawn anew, so that hardly
any comes from the cache. Each reply is checked for its form. Prints a row for docs/benchmarks.md on stderr and one JSON
object on stdout, and ends with status 1 if a request failed. Memory is the server's, read from /proc: all resident, and
the part that is not mapped files.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import threading
import time
import urllib.parse
from array import array
from collections import Counter
from typing import Any

from serving import dgpo_serve, memory_mb, percentile

from dgpo_cli.retrieval.index.store import PassageStore
from dgpo_cli.retrieval.open import open_index

TIMEOUT_S = 30.0
WORDS = 8  # of a query
WARM_UP_S = 2.0  # not measured
MEMORY_EVERY_S = 5.0


class Client(threading.Thread):
    """One connection that is kept open, and opened again after an error."""

    def __init__(self, number: int, url: str, passages: PassageStore, k: int, begin: float, end: float) -> None:
        super().__init__(daemon=True)
        self._place = urllib.parse.urlsplit(url)
        self._draw, self._passages, self._k = random.Random(f"client {number}"), passages, k
        self._begin, self._end = begin, end
        self.seconds = array("d")
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        connection = self._connect()
        while (started := time.monotonic()) < self._end:
            body = json.dumps({"queries": [self._query()], "topk": self._k, "return_scores": True})
            try:
                connection.request("POST", "/retrieve", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                problem = self._problem(response.status, content)
            except (OSError, http.client.HTTPException) as error:
                problem = type(error).__name__
                connection.close()
                connection = self._connect()
            if started >= self._begin:
                self.seconds.append(time.monotonic() - started)
                if problem:
                    self.errors[problem] += 1
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(self._place.hostname), self._place.port, timeout=TIMEOUT_S)

    def _query(self) -> str:
        words = self._passages[self._draw.randrange(len(self._passages))].contents.split()
        start = self._draw.randrange(max(1, len(words) - WORDS))
        return " ".join(words[start : start + WORDS])

    def _problem(self, status: int, content: bytes) -> str:
        if status != 200:
            return f"HTTP {status}"
        (hits,) = json.loads(content)["result"]
        return "" if all({"document", "score"} == hit.keys() for hit in hits) else "a hit of another form"


def counted(url: str) -> dict[str, float]:
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=TIMEOUT_S)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def load(url: str, process: int, passages: PassageStore, arguments: argparse.Namespace) -> dict[str, Any]:
    begin = time.monotonic() + WARM_UP_S
    end = begin + arguments.seconds
    clients = [Client(number, url, passages, arguments.k, begin, end) for number in range(arguments.clients)]
    for client in clients:
        client.start()
    time.sleep(WARM_UP_S)
    memory = [memory_mb(process)]
    while time.monotonic() < end:
        time.sleep(min(MEMORY_EVERY_S, max(0.0, end - time.monotonic())))
        memory.append(memory_mb(process))
    for client in clients:
        client.join(TIMEOUT_S + 5)
    seconds = sorted(value for client in clients for value in client.seconds)
    errors = sum((client.errors for client in clients), Counter[str]())
    metrics = counted(url)
    return {
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "k": arguments.k,
        "passages": len(passages),
        "requests": len(seconds),
        "requests_per_second": round(len(seconds) / arguments.seconds, 1),
        **{f"p{int(share * 100)}_ms": percentile(seconds, share) for share in (0.5, 0.95, 0.99)},
        "max_ms": percentile(seconds, 1.0),
        "errors": sum(errors.values()),
        "causes": dict(errors),
        "memory_mb": {"start": memory[0], "half": memory[len(memory) // 2], "end": memory[-1]},
        "from_cache": round(metrics["dgpo_cache_hits_total"] / metrics["dgpo_queries_total"], 4),
        "queries_per_batch": round(metrics["dgpo_batch_queries_sum"] / metrics["dgpo_batch_queries_count"], 1),
        "cores": os.cpu_count(),
    }


def row(result: dict[str, Any]) -> str:
    memory = " / ".join(f"{result['memory_mb'][when]['resident']:,.0f}" for when in ("start", "half", "end"))
    cells = (
        f"{result['passages']:,}",
        result["clients"],
        f"{result['seconds']:g} s",
        f"{result['requests']:,}",
        f"{result['requests_per_second']:,.0f}",
        *(f"{result[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
        result["errors"],
        memory,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", required=True, help="index folder")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to measure (600)")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (64)")
    parser.add_argument("-k", type=int, default=3, help="passages per query (3)")
    parser.add_argument("options", nargs="*", help="for `dgpo serve`, after --: -- -o cache_passages=0")
    arguments = parser.parse_args()
    passages = open_index(arguments.index).passages
    assert passages is not None, "--index must be a folder"
    with dgpo_serve("--index", arguments.index, *arguments.options) as server:
        result = load(server.url, server.process, passages, arguments)
    print(
        "| passages | clients | time | requests | per second | p50 ms | p95 ms | p99 ms | errors "
        "| memory MB, start / half / end |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        row(result),
        sep="\n",
        file=sys.stderr,
    )
    print(json.dumps(result))
    sys.exit(1 if result["errors"] or not result["requests"] else 0)


if __name__ == "__main__":
    main()
