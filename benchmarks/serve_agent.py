"""Load test of `dgpo serve --model` on this machine: many clients that ask without a pause, each by a stream.

    python benchmarks/serve_agent.py --model quickstart/runs/dgpo --index quickstart/index \
        --questions quickstart/world/test.jsonl --clients 32 --seconds 180

Starts the server itself, on a free loopback port. Every stream is read to its end and checked: an answer or a reason
why there is none, and counts of tokens that agree. With --beside, `transformers serve` answers the same questions with
the same model afterwards, one turn each and without a search, since that is what it can do; at most --turn tokens.
Prints a row for docs/benchmarks.md on stderr and one JSON object on stdout; status 1 if a question failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve_load import memory_mb, percentile

from dgpo_cli.qa_sets import read_questions

TIMEOUT_S = 600.0


class Client(threading.Thread):
    """Asks one question after the other, each on a connection of its own."""

    def __init__(self, number: int, url: str, fields: dict[str, Any], questions: list[str], end: float) -> None:
        super().__init__(daemon=True)
        self._place, self._fields, self._end = urllib.parse.urlsplit(url), fields, end
        self._draw, self._questions = random.Random(f"client {number}"), questions
        self.first: list[float] = []
        self.whole: list[float] = []
        self.tokens = 0
        self.ends: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        while time.monotonic() < self._end:
            try:
                self.ask(self._draw.choice(self._questions))
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1

    def ask(self, question: str) -> None:
        """Raises ValueError for a reply of another form."""
        started, first, reason, usage = time.monotonic(), None, None, None
        connection = http.client.HTTPConnection(str(self._place.hostname), self._place.port, timeout=TIMEOUT_S)
        body = {"messages": [{"role": "user", "content": question}], "stream": True, **self._fields}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status} {reply.read(200)!r}")
        for line in reply:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise ValueError(chunk["error"]["message"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice["delta"]
                if first is None and (delta.get("content") or delta.get("reasoning_content")):
                    first = time.monotonic() - started
                reason = choice.get("stop_reason") or choice.get("finish_reason") or reason
        connection.close()
        if reason is None or usage is None or usage["completion_tokens"] < 1:
            raise ValueError(f"the stream ended without an end: {reason}, {usage}")
        self.ends[reason] += 1
        self.tokens += usage["completion_tokens"]
        self.first.append(time.monotonic() - started if first is None else first)
        self.whole.append(time.monotonic() - started)


def load(url: str, fields: dict[str, Any], questions: list[str], clients: int, seconds: float) -> dict[str, Any]:
    fields = fields | {"stream_options": {"include_usage": True}}
    Client(-1, url, fields, questions, 0.0).ask(questions[0])  # some load the model with the first one
    begin = time.monotonic()
    asking = [Client(number, url, fields, questions, begin + seconds) for number in range(clients)]
    for client in asking:
        client.start()
    for client in asking:
        client.join()
    took = time.monotonic() - begin  # the last answers were waited for
    first, whole = (sorted(value for c in asking for value in getattr(c, name)) for name in ("first", "whole"))
    errors, ends = (sum((getattr(client, name) for client in asking), Counter()) for name in ("errors", "ends"))
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "answers": len(whole),
        "tokens_per_second": round(sum(client.tokens for client in asking) / took, 1),
        **{f"first_p{int(share * 100)}_ms": percentile(first, share) for share in (0.5, 0.95) if first},
        **{f"whole_p{int(share * 100)}_ms": percentile(whole, share) for share in (0.5, 0.95) if whole},
        "ends": dict(ends),
        "errors": sum(errors.values()),
        "causes": dict(errors),
    }


@contextmanager
def program(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        yield made
    finally:
        made.send_signal(signal.SIGTERM)
        try:
            made.wait(60)
        except subprocess.TimeoutExpired:
            made.kill()


def beside(arguments: argparse.Namespace, questions: list[str]) -> dict[str, Any]:
    """The same questions to `transformers serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = str(Path(arguments.model) / "best" if (Path(arguments.model) / "best").is_dir() else Path(arguments.model))
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", arguments.device]
    with program(command, stderr=subprocess.DEVNULL):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        fields = {"model": model, "max_tokens": arguments.turn, "temperature": 0.0}
        return load(f"http://127.0.0.1:{port}", fields, questions, arguments.clients, arguments.seconds)


def row(name: str, result: dict[str, Any]) -> str:
    times = (f"{result.get(key, float('nan')):,.0f}" for key in ("first_p50_ms", "first_p95_ms", "whole_p50_ms"))
    cells = (name, result["clients"], f"{result['seconds']:g} s", result["answers"], *times)
    return f"| {' | '.join(map(str, (*cells, result['tokens_per_second'], result['errors'])))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="run or folder")
    parser.add_argument("--index", required=True, help="index folder")
    parser.add_argument("--questions", required=True, help="file of questions")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long to ask (180)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (32)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--beside", action="store_true", help="`transformers serve` with the same model, too")
    parser.add_argument("--turn", type=int, default=64, help="tokens of its one turn (64)")
    parser.add_argument("options", nargs="*", help="for `dgpo serve`, after --: -- -o max_episodes=16")
    arguments = parser.parse_args()
    questions = [question.text for question in read_questions(Path(arguments.questions))]
    command = [sys.executable, "-m", "dgpo_cli", "serve", "--model", arguments.model, "--index", arguments.index]
    command += ["--port", "0", "--json", "--device", arguments.device, *arguments.options]
    with program(command) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        memory = memory_mb(server.pid)
        fields = {"max_completion_tokens": arguments.turn} if arguments.beside else {}
        result = load(json.loads(line)["url"], fields, questions, arguments.clients, arguments.seconds)
        result |= {"memory_mb": {"start": memory, "end": memory_mb(server.pid)}, "cores": os.cpu_count()}
    rows = [row("dgpo serve", result)]
    if arguments.beside:
        result["beside"] = beside(arguments, questions)
        rows.append(row("transformers serve", result["beside"]))
    print(
        "| server | clients | time | answers | first text p50 ms | p95 ms | answer p50 ms | tokens/s | errors |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
        sep="\n",
        file=sys.stderr,
    )
    print(json.dumps(result))
    sys.exit(1 if result["errors"] or not result["answers"] else 0)


if __name__ == "__main__":
    main()
