"""`dgpo serve`, without and with a model, against its own OpenAPI description (schemathesis), and 64 clients.

Without a model all of them ask for three minutes; with one some ask and listen, others leave before they are answered,
and others never end their request.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.serving import memory_mb
from tests.e2e.test_serve_limits import half_open
from tests.offline import Offline
from tests.served import Served, ask, served, until

from dgpo_cli.qa_sets import read_questions

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("DGPO_LOAD_SECONDS", "180"))
EXAMPLES = int(os.environ.get("DGPO_EXAMPLES", "500"))  # per operation
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)  # fmt: skip; values of a neighbouring type, such as "3" for 3, are accepted on purpose
LIMITS = ("--device", "cpu", "-orollout.max_new_tokens=16", "-orollout.max_turns=2", "-orollout.max_tokens=200")


def conforms(server: Served) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--seed", "0"]
    command += ["--max-examples", str(EXAMPLES), "--generation-database", "none", "--checks", ",".join(CHECKS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    print(ended.stdout[-1000:])
    assert ask(f"{server.url}/health").json["status"] == "ok"


def test_every_answer_is_one_that_the_description_names(offline: Offline) -> None:
    with served(offline.index) as server:
        conforms(server)
        assert server.metric("dgpo_request_errors_total") > 0, "refusals were among them"
        assert "Traceback" not in server.stop()


def test_every_answer_of_a_model_is_one_that_the_description_names(offline: Offline) -> None:
    with served(offline.index, "--model", str(offline.student), *LIMITS) as server:
        conforms(server)
        assert server.metric('dgpo_tokens_total{kind="written"}') > 0, "questions were among them"
        assert "Traceback" not in server.stop()


def test_64_clients_for_three_minutes(offline: Offline, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--index", str(offline.index),
            "--seconds", str(SECONDS), "--clients", "64",
        ],
        capture_output=True, text=True, timeout=SECONDS + 300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    print(ended.stderr[-500:])
    assert result["errors"] == 0 and result["requests"] > 0
    start, end = (result["memory_mb"][when]["own"] for when in ("half", "end"))
    assert end < 1.1 * start + 5, "memory is flat in the second half"


class Clients:
    """People who ask a model, each in a thread: some listen to the end, some leave, some never finish their request."""

    def __init__(self, server: Served, questions: list[str], end: float) -> None:
        self._server, self._questions, self._end = server, questions, end
        self._place = urllib.parse.urlsplit(server.url)
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def listen(self, draw: random.Random) -> None:
        stream = draw.random() < 0.5
        connection, reply = self._ask(draw, stream)
        content = reply.read()
        connection.close()
        assert reply.status == 200, content[:300]
        assert content.endswith(b"data: [DONE]\n\n") if stream else json.loads(content)["choices"], content[-300:]
        self.done["answers"] += 1

    def leave(self, draw: random.Random) -> None:
        connection, reply = self._ask(draw, True)
        reply.read(draw.randrange(1, 2_000))
        connection.close()
        self.done["left"] += 1

    def stay_silent(self, draw: random.Random) -> None:
        with half_open(self._server, 4):
            time.sleep(draw.uniform(1, 15))
        self.done["half-open"] += 4

    def _ask(self, draw: random.Random, stream: bool) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(str(self._place.hostname), self._place.port, timeout=60)
        body = {"messages": [{"role": "user", "content": draw.choice(self._questions)}], "stream": stream}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def run(self, number: int) -> None:
        draw = random.Random(f"client {number}")
        act = (self.listen, self.leave, self.listen, self.stay_silent)[number % 4]
        while time.monotonic() < self._end:
            try:
                act(draw)
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                self.errors[f"{act.__name__}: {type(error).__name__}: {error}"[:200]] += 1


def test_a_model_among_clients_that_leave_or_never_ask(offline: Offline) -> None:
    questions = [question.text for question in read_questions(offline.questions("train"))]
    with served(offline.index, "--model", str(offline.student), *LIMITS) as server:
        started = time.monotonic()
        clients = Clients(server, questions, started + SECONDS)
        threads = [threading.Thread(target=clients.run, args=(number,), daemon=True) for number in range(64)]
        for thread in threads:
            thread.start()
        memory = []
        for share in (0.5, 1.0):
            time.sleep(max(0, started + share * SECONDS - time.monotonic()))
            memory.append(memory_mb(server.process.pid)["own"])
        for thread in threads:
            thread.join(90)
        print(f"{dict(clients.done)} in {SECONDS} s, own memory {memory} MB")
        assert not clients.errors, clients.errors
        assert min(clients.done[what] for what in ("answers", "left", "half-open")) > 0
        assert memory[1] < 1.1 * memory[0] + 5, "memory is flat in the second half"
        until(lambda: ask(f"{server.url}/health").json["model"]["open_questions"] == 0, 10)
        assert ask(f"{server.url}/health").json["status"] == "ok"
        said = server.stop()
        assert "Traceback" not in said and len(said) < 20_000
