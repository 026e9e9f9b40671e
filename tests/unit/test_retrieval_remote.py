"""The client of Search-R1's /retrieve, against a server on this machine that answers as it is told."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.retrieval.remote.search_r1 import RemoteRetriever, SearchServerAccess, split_urls, use_access

Reply = tuple[int, Any]
DOCUMENT = {"id": "7", "contents": '"Vesapo"\na town'}


class Server:
    """`replies` are given one by one, the last one for good; bytes are sent as they are."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.headers: dict[str, str] = {}  # sent with every reply
        self.authorizations: list[str | None] = []
        self.replies: list[Reply] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body))
                outer.authorizations.append(self.headers["Authorization"])
                status, reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def client(server: Server) -> Callable[..., RemoteRetriever]:
    return lambda **options: RemoteRetriever(server.url, SearchServerAccess(pause_s=0.0, timeout_s=5.0, **options))


def test_the_request_is_search_r1s(server: Server, client: Callable[..., RemoteRetriever]) -> None:
    server.replies = [(200, {"result": [[], []]})]
    client().search(["one", "  ", "two"], 3)
    assert server.requests == [("/retrieve", {"queries": ["one", "two"], "topk": 3, "return_scores": True})]
    assert client().search(["", " "], 3) == [[], []]
    assert len(server.requests) == 1, "blank queries are not sent"


@pytest.mark.parametrize(
    ("item", "score"),
    [
        ({"document": DOCUMENT, "score": 2.5}, 2.5),
        (DOCUMENT, 0.0),
        ({"document": {"id": 7, "title": "Vesapo", "text": "a town"}, "score": 1}, 1.0),
    ],
)
def test_both_reply_shapes(server: Server, client: Callable[..., RemoteRetriever], item: Any, score: float) -> None:
    server.replies = [(200, {"result": [[], [item, item]]})]
    first, second, blank = client().search(["x", "y", ""], 2)
    assert (first, blank) == ([], [])
    assert [(hit.passage, hit.score, hit.rank) for hit in second] == [
        (Passage("7", '"Vesapo"\na town'), score, rank) for rank in (1, 2)
    ]


def test_more_hits_than_asked_for_are_left_out(server: Server, client: Callable[..., RemoteRetriever]) -> None:
    server.replies = [(200, {"result": [[DOCUMENT] * 5]})]
    assert len(client().search(["x"], 2)[0]) == 2


@pytest.mark.parametrize(
    "reply",
    [
        {"result": [[DOCUMENT], [DOCUMENT]]},
        {"result": "none"},
        {"result": [DOCUMENT]},
        {"results": []},
        {"result": [["text"]]},
        {"result": [[{"id": "7"}]]},
        {"result": [[{"document": DOCUMENT, "score": "high"}]]},
        {"result": [[{"document": DOCUMENT}]]},
        {"result": [[{"id": "7", "contents": "\ud800"}]]},
        b'{"result": [[{"document": {"id": "7", "contents": "x"}, "score": NaN}]]}',
    ],
)
def test_replies_of_another_form_are_errors(server: Server, client: Callable[..., RemoteRetriever], reply: Any) -> None:
    server.replies = [(200, reply)]
    with pytest.raises(RetrievalError, match=r"127\.0\.0\.1"):
        client().search(["x"], 2)
    assert len(server.requests) == 1, "asking again would not help"


def test_a_server_in_trouble_is_asked_again(server: Server, client: Callable[..., RemoteRetriever]) -> None:
    server.replies = [(500, "busy"), (429, "slow down"), (200, b"not json"), (200, {"result": [[DOCUMENT]]})]
    assert client(attempts=4).search(["x"], 1)[0][0].passage.id == "7"
    assert len(server.requests) == 4
    server.replies = [(503, {"detail": "loading the index"})]
    with pytest.raises(RetrievalError, match=r"failed 3 times, the last time with: HTTP 503.*loading the index"):
        client(attempts=3).search(["x"], 1)
    assert len(server.requests) == 7


def test_a_refused_request_is_not_repeated(server: Server, client: Callable[..., RemoteRetriever]) -> None:
    server.replies = [(422, {"detail": "topk too large"})]
    with pytest.raises(RetrievalError, match=r"HTTP 422.*topk too large"):
        client().search(["x"], 1)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there(server: Server) -> None:
    server.close()
    opened = open_index(server.url + "/")
    assert (opened.manifest, opened.passages, opened.digest) == (None, None, server.url + "/")
    with pytest.raises(RetrievalError, match=r"/retrieve failed 2 times"):
        RemoteRetriever(server.url, SearchServerAccess(attempts=2, pause_s=0.0)).search(["x"], 1)


def test_pauses_grow_and_differ_by_seed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies = [(500, "")]
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def paused(seed: int) -> list[float]:
        pauses.clear()
        with pytest.raises(RetrievalError):
            RemoteRetriever(server.url + "/retrieve", SearchServerAccess(seed=seed, attempts=4, pause_s=0.5)).search(
                ["x"], 1
            )
        return list(pauses)

    for seed in range(5):
        draw = random.Random(f"pauses {seed}")
        assert paused(seed) == [base * (0.5 + 0.5 * draw.random()) for base in (0.5, 1.0, 2.0)]
    assert paused(0) == paused(0) != paused(1)
    assert {path for path, _ in server.requests} == {"/retrieve"}


@pytest.fixture
def second() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


ACCESS = SearchServerAccess(pause_s=0.0, timeout_s=5.0, attempts=2)


def test_several_servers_share_the_work(server: Server, second: Server) -> None:
    server.replies = second.replies = [(200, {"result": [[DOCUMENT]]})]
    retriever = RemoteRetriever(f"{server.url}, {second.url}/retrieve", ACCESS)
    for _ in range(6):
        assert retriever.search(["x"], 1)[0][0].passage.id == "7"
    assert (len(server.requests), len(second.requests)) == (3, 3)


def test_where_one_server_fails_the_other_answers(server: Server, second: Server) -> None:
    server.replies, second.replies = [(503, "full")], [(200, {"result": [[DOCUMENT]]})]
    retriever = RemoteRetriever(f"{server.url},{second.url}", ACCESS)
    for _ in range(4):
        assert retriever.search(["x"], 1)[0][0].passage.id == "7"
    assert len(server.requests) == 1, "a server that failed a moment ago is asked last"
    second.replies = [(500, "broken")]
    with pytest.raises(RetrievalError, match=r"2 servers\) failed 2 times, the last time with: HTTP 50"):
        retriever.search(["x"], 1)
    server.replies = [(200, {"result": [[DOCUMENT]]})]
    assert retriever.search(["x"], 1)[0][0].passage.id == "7", "and is asked again where the others fail too"


def test_a_rested_server_is_asked_in_its_turn_again(server: Server, second: Server) -> None:
    server.replies = [(503, "loading"), (200, {"result": [[DOCUMENT]]})]
    second.replies = [(200, {"result": [[DOCUMENT]]})]
    retriever = RemoteRetriever(f"{server.url},{second.url}", SearchServerAccess(pause_s=0.0, attempts=1, rest_s=0.0))
    for _ in range(4):
        retriever.search(["x"], 1)
    assert (len(server.requests), len(second.requests)) == (2, 3)


def test_results_of_two_indexes_do_not_mix(server: Server, second: Server) -> None:
    server.replies = second.replies = [(200, {"result": [[DOCUMENT]]})]
    server.headers, second.headers = {"Dgpo-Index": "aaaa"}, {"Dgpo-Index": "bbbb"}
    retriever = RemoteRetriever(f"{server.url},{second.url}", ACCESS)
    retriever.search(["x"], 1)
    with pytest.raises(RetrievalError, match=r"serves another index \(bbbb\) than .* did before \(aaaa\)"):
        retriever.search(["x"], 1)
    second.headers = {}
    retriever = RemoteRetriever(f"{server.url},{second.url}", ACCESS)
    for _ in range(3):  # a server that names no index, such as Search-R1's own, is taken as it is
        retriever.search(["x"], 1)


def test_the_token_is_sent_and_nowhere_else(server: Server, second: Server) -> None:
    server.replies = [(200, {"result": [[DOCUMENT]]})]
    access = SearchServerAccess(token="s3cret-token")
    RemoteRetriever(server.url, access).search(["x"], 1)
    RemoteRetriever(server.url).search(["x"], 1)
    assert server.authorizations == ["Bearer s3cret-token", None]
    assert "s3cret" not in repr(access)
    server.headers, server.replies = {"Location": f"{second.url}/retrieve"}, [(302, "")]
    second.replies = [(200, {"result": [[DOCUMENT]]})]
    with pytest.raises(RetrievalError, match="HTTP 302"):
        RemoteRetriever(server.url, access).search(["x"], 1)
    assert second.requests == [], "a redirect is not followed"


def test_access_is_for_clients_opened_later(server: Server) -> None:
    server.replies = [(200, {"result": [[DOCUMENT]]})]
    try:
        use_access(SearchServerAccess(token="t" * 16))
        opened = open_index(server.url)
    finally:
        use_access(SearchServerAccess())
    opened.retriever.search(["x"], 1)
    assert server.authorizations == ["Bearer " + "t" * 16]


def test_a_missing_token_says_where_it_goes(server: Server) -> None:
    server.replies = [(401, {"detail": "the token is missing"})]
    with pytest.raises(RetrievalError, match=r"HTTP 401.*the token is missing") as raised:
        RemoteRetriever(server.url, ACCESS).search(["x"], 1)
    assert raised.value.hint is not None and "DGPO_SEARCH_TOKEN" in raised.value.hint


def test_addresses() -> None:
    urls = "http://a:1, https://b/x/retrieve/,http://a:1/"
    assert split_urls(urls) == ["http://a:1/retrieve", "https://b/x/retrieve"]


@pytest.mark.parametrize("location", ["http://", "http://a:port", "http://a,indexes/wiki", "http://a,ftp://b"])
def test_wrong_addresses(location: str) -> None:
    with pytest.raises(ConfigError, match="no address of a search server"):
        RemoteRetriever(location)


def test_a_silent_server_times_out(server: Server) -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(RetrievalError, match="timed out"):
            RemoteRetriever(url, SearchServerAccess(timeout_s=0.2, attempts=1)).search(["x"], 1)
