"""A real `dgpo serve` on a free loopback port, and a client as plain as a client can be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import SOURCES

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def ask(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """POST with a body, GET without one."""
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}))
    try:
        with DIRECT.open(request, timeout=30) as response:
            return Reply(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.headers, error.read())


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    about: dict[str, Any]

    def retrieve(self, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        return ask(f"{self.url}/retrieve", json.dumps(fields).encode(), headers)

    def metric(self, name: str) -> float:
        lines = ask(f"{self.url}/metrics").content.decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def stop(self, with_signal: int = signal.SIGTERM) -> str:
        """Its messages, once it has ended by itself with status 0."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        _, said = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, said
        return said


@contextmanager
def served(
    index: Path | str, *options: str, environment: Mapping[str, str] | None = None, files: int | None = None
) -> Iterator[Served]:
    """`files` is how many the server may open."""
    command = [sys.executable, "-m", "dgpo_cli", "serve", "--index", str(index), "--port", "0", "--json", *options]
    if files is not None:
        command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command]
    with as_process(command, environment) as made:
        yield made


@contextmanager
def as_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A program that serves, and prints one JSON object with its `url` when it does."""
    path = os.pathsep.join(filter(None, [str(SOURCES), str(SOURCES.parent), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        about = json.loads(line)
        yield Served(process, about["url"], about)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
