"""Replies of servers: a limit on their size, their depth and the time that a whole one takes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dgpo_cli.core import http, hub
from dgpo_cli.core.http import JsonClient, RequestFailed, RequestRefused

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """The address of a server that answers with what a function sends."""
    listening = socket.create_server(("127.0.0.1", 0))

    def start(answer: Callable[[socket.socket], None]) -> str:
        def work() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                try:
                    answer(connection)
                except OSError:
                    return

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/x"

    yield start
    listening.close()


def drip(connection: socket.socket, content: bytes) -> None:
    for place in range(len(content)):
        connection.sendall(content[place : place + 1])
        time.sleep(0.1)


ERROR = b"HTTP/1.1 500 Oh\r\n"
LONG = b"Content-Length: 400\r\n\r\n"


@pytest.mark.parametrize(
    "before", [b"", HEAD, HEAD + LONG, ERROR + LONG], ids=["status", "headers", "body", "body-of-an-error"]
)
def test_a_server_that_drips_is_given_up(serve: Callable[..., str], before: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        drip(connection, b"HTTP/1.1 200 OK" if not before else b"x" * 100)

    url = serve(answer)
    began = time.monotonic()
    with pytest.raises(RequestFailed, match=r"within 0\.5 s|timed out|HTTP 500"):
        JsonClient(url, timeout_s=0.5).ask(url)
    assert time.monotonic() - began < 3


def test_a_key_is_sent_in_the_header_that_its_api_wants() -> None:
    listening, sent = socket.create_server(("127.0.0.1", 0)), []

    def answer() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                sent.append(connection.recv(1 << 16).decode().lower())
                connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
    JsonClient(url, headers={"X-Subscription-Token": "k3y"}).ask(url)
    JsonClient(url, token="t0ken").ask(url, {"a": 1})
    thread.join(5)
    listening.close()
    assert "\r\nx-subscription-token: k3y\r\n" in sent[0] and "authorization" not in sent[0]
    assert "\r\nauthorization: bearer t0ken\r\n" in sent[1] and sent[1].startswith("post ")


def test_a_slow_reply_within_the_time_is_read(serve: Callable[..., str]) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n")
        drip(connection, b'{"a": 123}')

    url = serve(answer)
    assert JsonClient(url, timeout_s=10).ask(url)[1] == {"a": 123}


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"[" * 10_000 + b"]" * 10_000, RequestRefused, "inside each other"),
        (b'{"a": "\\ud800"}', RequestRefused, "not UTF-8"),
        (b"{", RequestFailed, "not JSON"),
        (b"[]", RequestFailed, "a list instead"),
        (b" " * 2_000, RequestRefused, "more than 1000 bytes"),
    ],
)
def test_a_reply_that_cannot_be_used(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, body: bytes, kind: type[Exception], said: str
) -> None:
    monkeypatch.setattr(http, "_LARGEST_REPLY", 1000 if body.isspace() else 1 << 20)
    url = serve(lambda c: c.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    with pytest.raises(kind, match=said):
        JsonClient(url, timeout_s=10).ask(url)


def test_a_hub_that_drips_is_soon_said_not_to_answer(
    serve: Callable[[Callable[[socket.socket], None]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", serve(lambda connection: drip(connection, HEAD + b"X: " + b"y" * 200)))
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.4)
    began = time.monotonic()
    assert "does not answer" in (hub.unreachable.__wrapped__() or "")
    assert time.monotonic() - began < 10
