"""`dgpo serve` as a process, asked as Search-R1, verl, SkyRL and this package's own client ask."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.served import ask, served

from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.remote.search_r1 import RemoteRetriever, SearchServerAccess

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


@pytest.mark.slow
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
        assert RemoteRetriever(server.url, SearchServerAccess(token=TOKEN)).search(["the town"], 1)[0]


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
        assert "stopped after 1 request, 0 of them errors" in said
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
        (["--token-file", "short"], "the token of short has 5 characters, fewer than 16 can be guessed"),
        (["--token-file", "words"], "words holds no token, which is one word"),
        (["--token-file", "binary"], "binary holds no token, which is one word"),
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
    (folder / "words").write_text("two lines\nof words")
    (folder / "binary").write_bytes(b"\xff" * 32)
    index = [] if "--index" in arguments else ["--index", str(offline.index)]
    ended = dgpo("serve", *index, "--port", "0", *arguments)
    assert ended.status == 1 and len(ended.errors) == 1 and cause in ended.errors[0]
    assert "Traceback" not in ended.err
