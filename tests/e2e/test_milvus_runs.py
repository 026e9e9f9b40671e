"""Whole commands over Milvus do what they do over an index in process, stop with one cause if it fails, and go on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.server_manager import server_manager_instance
from tests.e2e.test_kill import disturbed
from tests.e2e.test_resume import assert_same_run, logged
from tests.e2e.test_serve_commands import rl, without_seconds
from tests.milvus import milvus_server
from tests.offline import ROLLOUT
from tests.served import served
from tests.tiny_encoder import make_encoder, words_of

from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.remote.milvus import connection as milvus_connection
from dgpo_cli.retrieval.remote.milvus.collection import MilvusCollection
from dgpo_cli.retrieval.remote.milvus.connection import MilvusAccess

FLAGS = [f"-orollout.{name}={getattr(ROLLOUT, name)}" for name in ROLLOUT.__slots__ if name != "temperature"]


@pytest.fixture(autouse=True)
def _set_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are let go, and what the command line sets for the process is set back."""
    monkeypatch.setattr(milvus_connection, "_access", MilvusAccess())
    yield
    server_manager_instance.release_all()


@pytest.fixture
def index(dgpo: Callable[..., Any], folder: Path, offline: Any) -> Callable[..., str]:
    """Builds an index folder by the command line: `index("name", "--retriever", ...)`."""

    def build(name: str, *options: str) -> str:
        ended = dgpo("index", str(offline.corpus), "--out", name, *options)
        assert ended.status == 0, ended.err
        return str(folder / name)

    return build


@pytest.fixture
def in_file(index: Callable[..., str]) -> str:
    return index("milvus", "--retriever", "milvus", "--uri", "m.db")


def evaluate(dgpo: Callable[..., Any], offline: Any, searcher: Path, where: str, out: str, *options: str) -> Any:
    Path("sets").mkdir(exist_ok=True)
    Path("sets/nq.jsonl").write_bytes(offline.questions("train").read_bytes())
    return dgpo(
        *("eval", "--model", str(searcher), "--index", where, "--bench", "nq", "--bench-dir", "sets", "--limit", "24"),
        *("--batch-size", "4", "--device", "cpu", "--out", out, *options),
    )


def episodes(file: Path) -> list[dict[str, Any]]:
    """Trajectories by question, without what depends on the clock; scores to the fourth digit, for Milvus has five."""
    made: list[dict[str, Any]] = [without_seconds(json.loads(line)) for line in file.read_text().splitlines()[1:]]
    for episode in made:
        for call in episode["searches"]:
            for hit in call["hits"]:
                hit["score"] = round(hit["score"], 4)
    assert any(len(call["hits"]) == ROLLOUT.top_k for episode in made for call in episode["searches"])
    return sorted(made, key=lambda episode: f"{episode['question']['id']} {episode['sample']}")


@pytest.mark.parametrize("mode", ["bm25", "dense", "hybrid"])
def test_the_same_trajectories(
    dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, index: Callable[..., str], mode: str
) -> None:
    options, ours = ["-o", f"mode={mode}"], ["--retriever", mode]
    if mode != "bm25":
        passages = open_index(offline.index).passages
        assert passages is not None
        encoder = str(make_encoder(folder / "encoder", words=words_of(passages)))
        options += ["--encoder", encoder, "-o", "dense.max_length=40"]
        ours += ["--encoder", encoder, "-o", "max_length=40" if mode == "dense" else "dense.max_length=40"]
    local, milvus = index("local", *ours), index("milvus", "--retriever", "milvus", "--uri", "m.db", *options)
    for where, out in ((local, "over-local"), (milvus, "over-milvus")):
        ended = evaluate(dgpo, offline, searcher, where, out)
        assert ended.status == 0, ended.err
    assert episodes(folder / "over-milvus" / "nq.jsonl") == episodes(folder / "over-local" / "nq.jsonl")


def test_distill_data_rl_and_chat_do_what_they_do_in_process(
    dgpo: Callable[..., Any],
    folder: Path,
    offline: Any,
    searcher: Path,
    in_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rl(dgpo, offline, searcher, offline.index, "local").status == 0
    ended = rl(dgpo, offline, searcher, in_file, "over-milvus")
    assert ended.status == 0, ended.err
    assert_same_run(folder / "local", folder / "over-milvus")
    assert logged(folder / "over-milvus")[0]["searches"] > 0.5

    asked = "".join(f"{question.text}\n" for question in read_questions(offline.questions("train"))[:8])
    spoken = {}
    for where in (str(offline.index), in_file):
        made = dgpo(
            *("distill-data", "--teacher", str(searcher), "--index", where, "--keep", "all", "--limit", "16"),
            *("--data", str(offline.questions("train")), "--device", "cpu", "--out", f"data-{Path(where).name}"),
            *FLAGS,
        )
        assert made.status == 0, made.err
        monkeypatch.setattr("sys.stdin", io.StringIO(asked))
        chat = dgpo("chat", "--model", str(searcher), "--index", where, "--json", "--device", "cpu")
        spoken[where] = [
            [(call["query"], [hit["title"] for hit in call["hits"]]) for call in answer["searches"]]
            for answer in json.loads(chat.out)["answers"]
        ]
    made_by = [episodes(folder / name / "episodes.jsonl") for name in ("data-milvus", f"data-{offline.index.name}")]
    assert made_by[0] == made_by[1]
    assert spoken[in_file] == spoken[str(offline.index)]
    assert any(titles for answer in spoken[in_file] for _, titles in answer)


@pytest.mark.slow
def test_serve_shares_a_file_that_others_cannot_open(
    dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, in_file: str
) -> None:
    server_manager_instance.release_all()
    query = "Who lives in a town ?"
    with served(Path(in_file)) as server:
        reply = server.retrieve(queries=[query], topk=3, return_scores=True).json
        assert server.about["retriever"] == "milvus"
        over_http = evaluate(dgpo, offline, searcher, server.url, "over-http")
        assert over_http.status == 0, over_http.err
        refused = evaluate(dgpo, offline, searcher, in_file, "refused")
        assert (refused.status, len(refused.errors)) == (1, 1)
        assert "another process holds the lock" in refused.errors[0]
        assert "let `dgpo serve` share the index" in refused.err
        assert not (folder / "refused" / "nq.jsonl").exists()
    expected = open_index(offline.index).retriever.search([query], 3)[0]
    assert [hit["document"]["id"] for hit in reply["result"][0]] == [hit.passage.id for hit in expected]
    assert evaluate(dgpo, offline, searcher, str(offline.index), "local").status == 0
    assert episodes(folder / "over-http" / "nq.jsonl") == episodes(folder / "local" / "nq.jsonl")


class Stalling:
    """A server that can be told to answer so many searches more and then none, until it is mended."""

    def __init__(self) -> None:
        self.left, self.mended = 10**9, threading.Event()


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Stalling]]:
    """Its address, and what it is told by."""
    stalling, answer = Stalling(), MilvusServicer.Search

    def search(servicer: MilvusServicer, request: Any, context: Any) -> Any:
        stalling.left -= 1
        if stalling.left < 0:
            stalling.mended.wait(20)
        return answer(servicer, request, context)

    monkeypatch.setattr(MilvusServicer, "Search", search)
    with milvus_server(folder / "server") as address:
        yield address, stalling


def require_one_cause(ended: Any, place: Path) -> None:
    """One line that says what failed, a command that goes on, and not a word of it where a model could have read it."""
    assert (ended.status, len(ended.errors), "Traceback" in ended.err) == (1, 1, False)
    assert "questions failed to search: Milvus at http://127.0.0.1:" in ended.errors[0]
    assert "DEADLINE_EXCEEDED" in ended.errors[0]
    assert "the same command then goes on" in ended.err
    written = [path.read_text() for path in place.rglob("*.jsonl")]
    assert written
    assert not any("DEADLINE" in text or "Milvus" in text for text in written)


@pytest.mark.slow
def test_eval_stops_when_milvus_does_not_answer_in_time_and_goes_on(
    dgpo: Callable[..., Any],
    folder: Path,
    offline: Any,
    searcher: Path,
    index: Callable[..., str],
    server: tuple[str, Stalling],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, stalling = server
    where = index("milvus", "--retriever", "milvus", "--uri", address)
    assert evaluate(dgpo, offline, searcher, where, "whole").status == 0
    monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "2")
    stalling.left = 3
    require_one_cause(evaluate(dgpo, offline, searcher, where, "stopped"), folder / "stopped")
    before = (folder / "stopped" / "nq.jsonl").read_text()
    assert 1 < len(before.splitlines()) < 25, "some were answered, and not all"
    stalling.mended.set()
    monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "30")
    ended = evaluate(dgpo, offline, searcher, where, "stopped")
    assert ended.status == 0, ended.err
    assert (folder / "stopped" / "nq.jsonl").read_text().startswith(before)
    assert episodes(folder / "stopped" / "nq.jsonl") == episodes(folder / "whole" / "nq.jsonl")


@pytest.mark.slow
def test_rl_stops_when_milvus_does_not_answer_in_time_and_goes_on(
    dgpo: Callable[..., Any],
    folder: Path,
    offline: Any,
    searcher: Path,
    index: Callable[..., str],
    server: tuple[str, Stalling],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, stalling = server
    where = index("milvus", "--retriever", "milvus", "--uri", address)
    assert rl(dgpo, offline, searcher, where, "whole", "-osave_every=1").status == 0
    monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "2")
    stalling.left = 6
    require_one_cause(rl(dgpo, offline, searcher, where, "stopped", "-osave_every=1"), folder / "stopped")
    assert 0 < len(logged(folder / "stopped")) < len(logged(folder / "whole"))
    stalling.mended.set()
    monkeypatch.setenv("DGPO_SEARCH_TIMEOUT", "30")
    ended = rl(dgpo, offline, searcher, where, "stopped", "-osave_every=1")
    assert ended.status == 0, ended.err
    assert "going on with" in ended.err
    assert_same_run(folder / "whole", folder / "stopped")


def test_an_interrupted_eval_goes_on(
    dgpo: Callable[..., Any],
    folder: Path,
    offline: Any,
    searcher: Path,
    in_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert evaluate(dgpo, offline, searcher, in_file, "whole").status == 0
    searched, search = 0, MilvusCollection.search

    def interrupted(self: MilvusCollection, *arguments: Any, **settings: Any) -> Any:
        nonlocal searched
        searched += 1
        if searched == 9:
            raise KeyboardInterrupt
        return search(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusCollection, "search", interrupted)
        assert evaluate(dgpo, offline, searcher, in_file, "stopped").status == 130
    before = (folder / "stopped" / "nq.jsonl").read_text()
    assert 1 < len(before.splitlines()) < 25
    ended = evaluate(dgpo, offline, searcher, in_file, "stopped")
    assert ended.status == 0, ended.err
    assert (folder / "stopped" / "nq.jsonl").read_text().startswith(before)
    assert episodes(folder / "stopped" / "nq.jsonl") == episodes(folder / "whole" / "nq.jsonl")


SERVER = """
import sys, time
from pathlib import Path
from tests.milvus import milvus_server
with milvus_server(Path(sys.argv[1])) as address:
    print(address, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_milvus_that_dies_is_a_cause_and_no_empty_answer(
    dgpo: Callable[..., Any],
    folder: Path,
    offline: Any,
    searcher: Path,
    index: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a run nothing is begun; behind `dgpo serve` the server says so to whoever asks, and lives on."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"), *sys.path]))
    command = [sys.executable, "-c", SERVER, str(folder / "server")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as milvus:
        try:
            assert milvus.stdout is not None
            address = milvus.stdout.readline().strip()
            where = index("milvus", "--retriever", "milvus", "--uri", address)
            with served(Path(where), environment={"DGPO_SEARCH_TIMEOUT": "1"}) as server:
                asked = [question.text for question in read_questions(offline.questions("train"))]
                assert server.retrieve(queries=asked[:1], topk=2).json["result"][0]
                os.kill(milvus.pid, signal.SIGKILL)
                milvus.wait()
                reply = server.retrieve(queries=asked[1:2], topk=2)
                assert reply.status == 500
                assert f"Milvus at {address} cannot search" in reply.json["detail"]
                assert server.retrieve(queries=asked[:1], topk=2).status == 200, "it was asked before"
                assert server.metric("dgpo_search_errors_total") == 1
        finally:
            milvus.kill()
    monkeypatch.setattr(milvus_connection, "CONNECT_S", 2.0)
    for ended in (dgpo("search", "town", "--index", where), evaluate(dgpo, offline, searcher, where, "none")):
        assert (ended.status, len(ended.errors)) == (1, 1), ended.err
        assert f"Milvus at {address} cannot be reached" in ended.errors[0]
        assert "Traceback" not in ended.err
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_rl_over_a_file_after_kills(tmp_path: Path, offline: Any, searcher: Path) -> None:
    def build(name: str) -> None:
        (tmp_path / name).mkdir()
        command = [sys.executable, "-m", "dgpo_cli", "index", str(offline.corpus), "--out", "index"]
        subprocess.run([*command, "--retriever", "milvus", "--uri", "m.db"], cwd=tmp_path / name, check=True)

    build("whole")
    build("killed")
    arguments = [
        *("rl", "--student", searcher, "--teacher", offline.teacher, "--index", "index"),
        *("--data", offline.questions("train"), "--eval-data", offline.questions("validation")),
        *("--steps", 30, "--batch-size", 8, "--lr", 0.01, "--kl-coef", 0.1),
        *("-osave_every=4", "-oeval_every=8", "-oeval_limit=8", "-owarmup_steps=0", *FLAGS),
    ]
    assert_same_run(*disturbed(tmp_path, arguments, "runs/rl-0001/metrics.jsonl", [1, 10, 23]))
