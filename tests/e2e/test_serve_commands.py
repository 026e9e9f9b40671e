"""Whole commands over HTTP: rl, eval and chat through a real `dgpo serve` do what they do in process; the load test."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.serving import percentile
from tests.conftest import SOURCES
from tests.e2e.test_resume import assert_same_run, logged
from tests.offline import ROLLOUT
from tests.retrieval_corpora import write_corpus
from tests.served import ask, served

from dgpo_cli.errors import RetrievalError
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.remote import search_r1
from dgpo_cli.retrieval.remote.search_r1 import SearchServerAccess

BENCH = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"
PATH = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def access(monkeypatch):
    """What the command line sets for the process is set back."""
    monkeypatch.setattr(search_r1, "_access", SearchServerAccess())


def rl(dgpo, offline, student, index, out, *options):
    rollout = [f"-orollout.{name}={getattr(ROLLOUT, name)}" for name in ROLLOUT.__slots__ if name != "temperature"]
    return dgpo(
        *("rl", "--student", str(student), "--teacher", str(offline.teacher), "--index", str(index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("validation"))),
        *("--steps", "4", "--batch-size", "8", "--lr", "0.01", "--kl-coef", "0.1", "--out", out, "--device", "cpu"),
        *("-oeval_every=2", "-oeval_limit=4", "-owarmup_steps=0", *rollout, *options),
    )


@pytest.mark.slow
def test_rl_over_http_ends_with_the_weights_of_rl_in_process(dgpo, folder, offline, searcher, access, monkeypatch):
    """The token travels by the environment and is written nowhere."""
    assert rl(dgpo, offline, searcher, offline.index, "local").status == 0
    monkeypatch.setenv("DGPO_SEARCH_TOKEN", TOKEN)
    with served(offline.index) as server:
        ended = rl(dgpo, offline, searcher, server.url, "remote")
        assert ended.status == 0, ended.err
        counted = ask(f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).content.decode()
    assert_same_run(folder / "local", folder / "remote")
    asked = next(float(line.split()[1]) for line in counted.splitlines() if line.startswith("dgpo_queries_total "))
    assert asked > 32, "most of the 4 x 8 episodes and the evaluations searched"
    assert logged(folder / "remote")[0]["searches"] > 0.5
    # The control: what was found decides the weights.
    build_index(write_corpus(folder / "towns.jsonl"), folder / "towns")
    assert rl(dgpo, offline, searcher, folder / "towns", "other").status == 0
    with pytest.raises(AssertionError):
        assert_same_run(folder / "local", folder / "other")
    written = [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


@pytest.mark.slow
def test_eval_over_two_servers_and_chat_over_one_answer_as_in_process(dgpo, folder, offline, searcher, monkeypatch):
    (folder / "sets").mkdir()
    (folder / "sets" / "nq.jsonl").write_bytes(offline.questions("test").read_bytes())

    def evaluated(index, out):
        ended = dgpo(
            *("eval", "--model", str(searcher), "--index", index, "--bench", "nq", "--bench-dir", "sets"),
            *("--batch-size", "4", "--device", "cpu", "--out", out),
        )
        assert ended.status == 0, ended.err
        records = [json.loads(line) for line in (folder / out / "nq.jsonl").read_text().splitlines()[1:]]
        return [json.dumps(record, sort_keys=True) for record in map(without_seconds, records)]

    questions = "".join(f"{question.text}\n" for question in read_questions(offline.questions("train"))[:5])

    def chatted(index):
        monkeypatch.setattr("sys.stdin", io.StringIO(questions))
        return dgpo("chat", "--model", str(searcher), "--index", index, "--json", "--device", "cpu").out

    local = str(offline.index)
    with served(offline.index) as one, served(offline.index) as two:
        assert evaluated(f"{one.url},{two.url}", "remote") == evaluated(local, "local")
        assert one.metric("dgpo_queries_total") > 0 < two.metric("dgpo_queries_total")
        spoken = chatted(two.url)
    assert spoken == chatted(local)
    assert any(search["hits"] for answer in json.loads(spoken)["answers"] for search in answer["searches"])


def without_seconds(record):
    """A record without what depends on the clock."""
    if isinstance(record, dict):
        return {name: without_seconds(value) for name, value in record.items() if name != "seconds"}
    return [without_seconds(value) for value in record] if isinstance(record, list) else record


@pytest.mark.slow
def test_the_load_test_counts_what_the_server_counts(offline):
    command = [sys.executable, str(BENCH), "--index", str(offline.index), "--seconds", "1", "--clients", "4", "-k", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": PATH})
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["errors"] == 0 and result["passages"] == len(open_index(offline.index).passages)
    served_in_all = int(re.search(r"stopped after ([\d,]+) requests?", ended.stderr)[1].replace(",", ""))
    assert 0 < result["requests"] <= served_in_all
    assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"] <= result["max_ms"]
    assert result["memory_mb"]["end"]["resident"] > result["memory_mb"]["end"]["own"] > 10
    assert f"| 4 | 1 s | {result['requests']:,} |" in ended.stderr


def test_a_percentile_is_the_value_that_so_many_do_not_exceed():
    ordered = [number / 1000 for number in range(1, 201)]
    assert [percentile(ordered, share) for share in (0.5, 0.95, 0.99, 1.0)] == [100, 190, 198, 200]
    assert percentile([0.007], 0.5) == 7


def test_rl_stops_with_the_cause_when_the_server_does_not_answer(dgpo, offline, searcher, access, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ended = rl(dgpo, offline, searcher, f"http://127.0.0.1:{closed.getsockname()[1]}", "remote")
    assert ended.status == 1
    assert len(ended.errors) == 1 and "refused" in ended.errors[0]


def test_a_token_that_cannot_be_sent_is_not_shown(dgpo, offline, access, monkeypatch):
    monkeypatch.setenv("DGPO_SEARCH_TOKEN", "a secret\nof two lines")
    ended = dgpo("index", "check", "--index", str(offline.index))
    assert ended.status == 1
    assert ended.errors == ["error: DGPO_SEARCH_TOKEN holds no token, which is one word of letters, digits and signs"]
    assert "secret\nof" not in ended.err and "a secret" not in ended.err


def test_a_slow_server_is_given_the_time_that_the_environment_says(dgpo, folder, offline, access, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "0.25")
        assert dgpo("models").status == 0
        opened = open_index(f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("time.sleep", lambda _seconds: None)
        started = time.monotonic()
        with pytest.raises(RetrievalError, match="failed 4 times, the last time with: timed out"):
            opened.retriever.search(["x"], 1)
        assert 1.0 <= time.monotonic() - started < 10
    monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "soon")
    assert dgpo("models").errors == ["error: DGPO_SEARCH_TIMEOUT = 'soon' is no number of seconds"]
