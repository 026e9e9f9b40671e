"""`dgpo serve` as a process, asked as Search-R1, verl, SkyRL and this package's own client ask."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.bench.serve_load import percentile
from tests.conftest import SOURCES
from tests.e2e.test_resume import assert_same_run, logged
from tests.offline import ROLLOUT
from tests.retrieval_corpora import write_corpus
from tests.served import ask, served

from dgpo_cli.errors import RetrievalError
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_model, save_model
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval import remote
from dgpo_cli.retrieval.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.remote import RemoteRetriever, ServerAccess

BENCH = Path(__file__).parents[1] / "bench" / "serve_load.py"
PATH = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
TOKEN = "correct-horse-battery-staple"
QUERIES = ["the river that flows through a town", "Who directed the film?", "näve 川"]


@pytest.fixture(scope="module")
def server(offline):
    with served(offline.index) as made:
        yield made


@pytest.fixture(scope="module")
def in_process(offline):
    return open_index(offline.index)


def words(index):
    return sorted({word for passage in index.passages for word in passage.contents.split()})


def scored(hits):
    return [{"document": {"id": h.passage.id, "contents": h.passage.contents}, "score": h.score} for h in hits]


def test_it_says_what_it_serves(server, in_process):
    assert server.about | {"url": ""} == {
        "url": "",
        "index": in_process.location,
        "retriever": "bm25",
        "passages": len(in_process.passages),
        "digest": in_process.digest,
    }
    assert server.url.startswith("http://127.0.0.1:")
    health = ask(f"{server.url}/health").json
    assert health == {
        "status": "ok",
        "index": {n: server.about[n] for n in ("retriever", "passages", "digest")},
    }


# The requests as they arrive from: requests.post(url, json=...) of Search-R1's generation loop, the search tool that
# verl and SkyRL share, and curl without a content type.
CLIENTS = {
    "search-r1": {"Content-Type": "application/json", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"},
    "verl": {"Content-Type": "application/json", "Accept": "application/json"},
    "curl": {"Content-Type": "application/x-www-form-urlencoded"},
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_requests_of_other_clients(server, in_process, client):
    body = json.dumps({"queries": QUERIES, "topk": 3, "return_scores": True}).encode()
    reply = ask(f"{server.url}/retrieve", body, CLIENTS[client])
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json == {"result": [scored(hits) for hits in in_process.retriever.search(QUERIES, 3)]}
    # what those clients make of it
    for row in reply.json["result"]:
        for item in row:
            title, _, text = item["document"]["contents"].partition("\n")
            assert title.startswith('"') and text


def test_the_other_reply_shape_and_the_defaults(server, in_process):
    expected = [[hit["document"] for hit in scored(hits)] for hits in in_process.retriever.search(QUERIES, 3)]
    assert server.retrieve(queries=QUERIES).json == {"result": expected}
    assert server.retrieve(queries=QUERIES, topk=None, return_scores=False).json == {"result": expected}
    assert len(expected[0]) == 3
    assert server.retrieve(queries=[]).json == {"result": []}
    assert server.retrieve(queries=[" ", "zzzzqqq"]).json == {"result": [[], []]}


def test_our_client_gets_what_the_index_gives(server, in_process):
    queries = [*QUERIES, "", *random.Random(0).sample(words(in_process), 40)]
    assert RemoteRetriever(server.url).search(queries, 5) == in_process.retriever.search(queries, 5)


def test_32_clients_at_once_get_what_each_would_get_alone(offline, in_process):
    vocabulary = words(in_process)

    def client(number):
        draw = random.Random(number)
        retriever = RemoteRetriever(server.url)
        asked = []
        for _ in range(12):
            # Every other query is asked by all of them, at about the same time.
            own = [" ".join(draw.sample(vocabulary, 4)) for _ in range(draw.randint(1, 3))]
            queries, k = [*own, draw.choice(QUERIES)], draw.randint(1, 5)
            asked.append((queries, k, retriever.search(queries, k)))
        return asked

    # A cache that holds next to nothing, so that nearly all go to the engine.
    with served(offline.index, "-o", "cache_passages=20") as server:
        with ThreadPoolExecutor(32) as pool:
            answered = [one for asked in pool.map(client, range(32)) for one in asked]
        for queries, k, hits in answered:
            assert hits == [in_process.retriever.search([query], k)[0] for query in queries]
        asked = sum(len(queries) for queries, _, _ in answered)
        assert server.metric("dgpo_queries_total") == asked
        assert server.metric('dgpo_requests_total{status="200"}') == 32 * 12
        batches, searched = (server.metric(f"dgpo_batch_queries_{name}") for name in ("count", "sum"))
        assert searched <= asked - server.metric("dgpo_cache_hits_total")
        assert searched > 1.5 * batches, "requests of several clients were searched together"
        assert server.metric("dgpo_requests_in_flight") == server.metric("dgpo_request_errors_total") == 0


def test_an_answer_is_kept_by_query_and_k(offline, in_process):
    with served(offline.index) as server:
        for k in (2, 2, 3, 2):
            result = server.retrieve(queries=QUERIES[:2], topk=k, return_scores=True).json["result"]
            assert result == [scored(hits) for hits in in_process.retriever.search(QUERIES[:2], k)]
        assert server.metric("dgpo_cache_hits_total") == 4
        assert server.metric("dgpo_batch_queries_sum") == 4
        assert server.metric("dgpo_cached_answers") == 4


LIMITS = ("max_body_bytes=600", "max_queries=3", "max_query_chars=50", "max_topk=5", "default_topk=2")


@pytest.fixture(scope="module")
def limited(offline):
    with served(offline.index, *(word for limit in LIMITS for word in ("-o", limit))) as made:
        yield made


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ({"queries": ["x"] * 4}, 413, "4 queries are more than max_queries = 3"),
        ({"queries": ["x", "x" * 51]}, 422, "queries.1: 51 characters are more than max_query_chars = 50"),
        ({"queries": ["x"], "topk": 6}, 422, "topk: 6 is not from 1 to max_topk = 5"),
        ({"queries": ["x"], "topk": 0}, 422, "topk: 0 is not from 1 to max_topk = 5"),
        ({"queries": ["x"], "topk": "many"}, 422, "topk: Input should be a valid integer"),
        ({"queries": "x"}, 422, "queries: Input should be a valid"),
        ({"queries": ["x", 3]}, 422, "queries.1: Input should be a valid string"),
        ({"query": "x"}, 422, "queries: Field required"),
        ({"queries": ["\ud800"]}, 422, "the request: Invalid JSON"),
        (b"not json", 422, "the request: Invalid JSON"),
        (b'{"queries": ["\xff"]}', 422, "the request: Invalid JSON"),
        (b" " * 601, 413, "the request is larger than max_body_bytes = 600"),
        (b" " * 2_000, 413, "the request is larger than max_body_bytes = 600"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_too_much_or_wrong_is_refused_with_a_cause(limited, body, status, cause):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = ask(f"{limited.url}/retrieve", content, {"Content-Type": "application/json"})
    assert reply.status == status
    assert list(reply.json) == ["detail"] and cause in reply.json["detail"]
    assert len(limited.retrieve(queries=["the town"] * 3).json["result"][0]) == 2, "the server goes on"


def test_other_paths_and_methods_answer_in_json(limited):
    assert ask(f"{limited.url}/nowhere").json == {"detail": "Not Found"}
    assert ask(f"{limited.url}/retrieve").json == {"detail": "Method Not Allowed"}


def test_a_refusal_reaches_the_user_of_our_client(limited):
    with pytest.raises(RetrievalError, match=r"HTTP 422.*topk: 6 is not from 1 to max_topk = 5"):
        RemoteRetriever(limited.url).search(["x"], 6)


def test_a_web_page_cannot_ask_under_a_name_of_its_own(limited):
    reply = limited.retrieve({"Host": "rebound.example:80"}, queries=["x"])
    assert reply.status == 421 and "rebound.example" in reply.json["detail"]
    assert ask(f"{limited.url}/health", headers={"Host": "rebound.example"}).json == {"status": "ok"}
    port = limited.url.rpartition(":")[2]
    assert limited.retrieve({"Host": f"localhost:{port}"}, queries=["x"]).status == 200


def test_only_the_token_opens(offline, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with served(offline.index, "--token-file", str(tmp_path / "token")) as server:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "é"}):
            reply = server.retrieve(headers, queries=["x"])
            assert reply.status == 401 and "token" in reply.json["detail"]
            assert "Dgpo-Index" not in reply.headers
            assert ask(f"{server.url}/metrics", headers=headers).status == 401
        large = ask(f"{server.url}/retrieve", b"x" * 4_000_000)
        assert large.status == 401, "the cause arrives although the request was not read"
        right = {"Authorization": f"Bearer {TOKEN}", "Host": "any.example"}
        assert server.retrieve(right, queries=["x"]).status == 200
        assert ask(f"{server.url}/metrics", headers=right).status == 200
        assert ask(f"{server.url}/health").json == {"status": "ok"}, "what is served is nobody's business"
        assert "index" in ask(f"{server.url}/health", headers=right).json
        with pytest.raises(RetrievalError, match="HTTP 401"):
            RemoteRetriever(server.url).search(["the town"], 1)
        assert RemoteRetriever(server.url, ServerAccess(token=TOKEN)).search(["the town"], 1)[0]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_before_it_stops(offline, in_process, by):
    replies = []
    with served(offline.index, "-o", "batch_wait_ms=1500") as server:
        asking = threading.Thread(target=lambda: replies.append(server.retrieve(queries=QUERIES, return_scores=True)))
        asking.start()
        deadline = time.monotonic() + 10
        while server.metric("dgpo_requests_in_flight") < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        said = server.stop(by)
        asking.join()
        assert replies[0].json == {"result": [scored(hits) for hits in in_process.retriever.search(QUERIES, 3)]}
        assert "stopped after 1 requests, 0 of them errors" in said
        with pytest.raises(OSError, match="refused"):
            ask(f"{server.url}/health")


def test_a_taken_port_is_one_line(dgpo, offline):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ended = dgpo("serve", "--index", str(offline.index), "--port", str(port))
    assert ended.status == 1
    assert ended.errors == [f"error: port {port} of 127.0.0.1 is taken by another program"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--host", "0.0.0.0"], "without a token only this machine may search, and 0.0.0.0 is open to others"),
        (["--host", "::"], "without a token only this machine may search"),
        (["--host", "host.invalid"], "host.invalid is no address of this machine"),
        (["--token-file", "short"], "short holds no token of 16 or more"),
        (["--token-file", "missing"], "No such file"),
        (["-o", "max_topk=0"], "max_topk = 0 is out of range"),
        (["-o", "default_topk=101"], "default_topk = 101 is above max_topk = 100"),
        (["-o", "max_top=3"], "no option 'max_top'"),
        (["--index", "http://127.0.0.1:9"], "is a server already"),
        (["--index", "nowhere"], "nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_it_refuses_to_start_in_one_line(dgpo, folder, offline, arguments, cause):
    (folder / "short").write_text("short")
    index = [] if "--index" in arguments else ["--index", str(offline.index)]
    ended = dgpo("serve", *index, "--port", "0", *arguments)
    assert ended.status == 1 and len(ended.errors) == 1 and cause in ended.errors[0]
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def searcher(offline, tmp_path_factory):
    """The student after a few seconds of learning to search for what the question says; its answers are wrong."""
    torch.manual_seed(0)
    loaded = load_model(str(offline.student), device=torch.device("cpu"))
    codec, model = Codec(loaded.tokenizer, loaded.protocol), loaded.model.train()
    rows = []
    for question in read_questions(offline.questions("train")):
        prompt = codec.prompt_ids(question.text).ids
        rows.append((prompt, codec.tokenizer(f"<search>{question.text}</search>", add_special_tokens=False).input_ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(400):
        prompt, written = rows[step % len(rows)]
        ids = torch.tensor([[*prompt, *written]])
        labels = torch.tensor([[-100] * len(prompt) + list(written)])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("searcher")
    save_model(folder, model.eval(), loaded.tokenizer, loaded.protocol)
    return folder


@pytest.fixture
def access(monkeypatch):
    """What the command line sets for the process is set back."""
    monkeypatch.setattr(remote, "_access", ServerAccess())


def rl(dgpo, offline, student, index, out):
    rollout = [f"-orollout.{name}={getattr(ROLLOUT, name)}" for name in ROLLOUT.__slots__ if name != "temperature"]
    return dgpo(
        *("rl", "--student", str(student), "--teacher", str(offline.teacher), "--index", str(index)),
        *("--data", str(offline.questions("train")), "--eval-data", str(offline.questions("validation"))),
        *("--steps", "4", "--batch-size", "8", "--lr", "0.01", "--kl-coef", "0.1", "--out", out, "--device", "cpu"),
        *("-oeval_every=2", "-oeval_questions=4", "-owarmup_steps=0", *rollout),
    )


def test_rl_over_http_ends_with_the_weights_of_rl_in_process(dgpo, folder, offline, searcher, access, monkeypatch):
    """The token travels by the environment and is written nowhere."""
    assert rl(dgpo, offline, searcher, offline.index, "local").status == 0
    monkeypatch.setenv("DGPO_SEARCH_TOKEN", TOKEN)
    with served(offline.index) as server:
        ended = rl(dgpo, offline, searcher, server.url, "remote")
        assert ended.status == 0, ended.err
        counted = ask(f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).content.decode()
    assert_same_run(folder / "local", folder / "remote")
    asked = next(int(line.split()[1]) for line in counted.splitlines() if line.startswith("dgpo_queries_total "))
    assert asked > 32, "most of the 4 x 8 episodes and the evaluations searched"
    assert logged(folder / "remote")[0]["searches"] > 0.5
    # The control: what was found decides the weights.
    build_index(write_corpus(folder / "towns.jsonl"), folder / "towns")
    assert rl(dgpo, offline, searcher, folder / "towns", "other").status == 0
    with pytest.raises(AssertionError):
        assert_same_run(folder / "local", folder / "other")
    written = [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


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


def test_the_load_test_counts_what_the_server_counts(offline):
    command = [sys.executable, str(BENCH), "--index", str(offline.index), "--seconds", "1", "--clients", "4", "-k", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": PATH})
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["errors"] == 0 and result["passages"] == len(open_index(offline.index).passages)
    served_in_all = int(re.search(r"stopped after ([\d,]+) requests", ended.stderr)[1].replace(",", ""))
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
    assert len(ended.errors) == 1 and "failed to search" in ended.errors[0] and "refused" in ended.errors[0]
