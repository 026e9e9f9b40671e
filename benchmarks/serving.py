"""Servers that a benchmark starts on a free loopback port, a client of OpenAI's chat, and what is read of a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Running:
    process: int
    url: str


@contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Stopped at the end as Ctrl-C stops it, or killed where that takes a minute."""
    made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        yield made
    finally:
        made.send_signal(signal.SIGTERM)
        try:
            made.wait(60)
        except subprocess.TimeoutExpired:
            made.kill()


@contextmanager
def dgpo_serve(*options: str) -> Iterator[Running]:
    with program([sys.executable, "-m", "dgpo_cli", "serve", *options, "--port", "0", "--json"]) as made:
        assert made.stdout is not None
        line = made.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        yield Running(made.pid, json.loads(line)["url"])


@contextmanager
def transformers_serve(model: str, *options: str) -> Iterator[Running]:
    """`model` is a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, *options]
    with program([*command, "--host", "127.0.0.1", "--port", str(port)], stderr=subprocess.DEVNULL) as made:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and made.poll() is None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                yield Running(made.pid, f"http://127.0.0.1:{port}")
                return
            time.sleep(0.5)
        sys.exit("`transformers serve` did not start")


class ChatClient(threading.Thread):
    """Asks one question after the other, each by a stream on a connection of its own."""

    def __init__(self, url: str, fields: Mapping[str, Any], next_question: Callable[[], str | None]) -> None:
        """`next_question` gives None where there is no further one."""
        super().__init__(daemon=True)
        self._place, self._fields, self._next = urllib.parse.urlsplit(url), fields, next_question
        self.first: list[float] = []  # seconds to the first text
        self.whole: list[float] = []
        self.read = self.tokens = 0
        self.said: dict[str, str] = {}
        self.ends: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        while (question := self._next()) is not None:
            try:
                self.ask(question)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1

    def ask(self, question: str) -> None:
        """Reads the stream to its end. Raises ValueError for one of another form."""
        started, first, reason, usage, said = time.monotonic(), None, None, None, ""
        connection = http.client.HTTPConnection(str(self._place.hostname), self._place.port, timeout=TIMEOUT_S)
        body = {"messages": [{"role": "user", "content": question}], "stream": True, **self._fields}
        body |= {"stream_options": {"include_usage": True}}
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
                text = (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")
                said += text
                if first is None and text:
                    first = time.monotonic() - started
                reason = choice.get("stop_reason") or choice.get("finish_reason") or reason
        connection.close()
        if reason is None or usage is None or usage["completion_tokens"] < 1:
            raise ValueError(f"the stream ended without an end: {reason}, {usage}")
        self.ends[reason] += 1
        self.read += usage["prompt_tokens"]
        self.tokens += usage["completion_tokens"]
        self.said[question] = said
        self.first.append(time.monotonic() - started if first is None else first)
        self.whole.append(time.monotonic() - started)


def asked_by(clients: Sequence[ChatClient]) -> dict[str, Any]:
    """What the clients found, who ask all at once."""
    begin = time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.monotonic() - begin  # the last answers were waited for
    first, whole = (sorted(value for c in clients for value in getattr(c, name)) for name in ("first", "whole"))
    errors, ends = (sum((getattr(client, name) for client in clients), Counter()) for name in ("errors", "ends"))
    return {
        "clients": len(clients),
        "seconds": round(took, 1),
        "answers": len(whole),
        "tokens": sum(client.tokens for client in clients),
        "tokens_per_second": round(sum(client.tokens for client in clients) / took, 1),
        **{f"first_p{int(share * 100)}_ms": percentile(first, share) for share in (0.5, 0.95) if first},
        **{f"whole_p{int(share * 100)}_ms": percentile(whole, share) for share in (0.5, 0.95) if whole},
        "ends": dict(ends),
        "errors": sum(errors.values()),
        "causes": dict(errors),
    }


def memory_mb(process: int) -> dict[str, float]:
    """Resident memory of a process: all of it, and without the pages of files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {name: round(int(values[key]) / 1024, 1) for name, key in (("resident", "VmRSS"), ("own", "RssAnon"))}


def cpu_seconds(process: int) -> float:
    """Of all its threads, in user and in kernel mode."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed, in ms."""
    place = max(0, -int(-share * len(ordered) // 1) - 1)
    return round(ordered[place] * 1000, 2)
