"""`dgpo serve` under clients that open and say nothing, ask for much and leave, or send what is no request."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.served import Served, ask, served


def place(server: Served) -> tuple[str, int]:
    parsed = urllib.parse.urlsplit(server.url)
    return str(parsed.hostname), int(parsed.port or 0)


@contextmanager
def half_open(server: Served, count: int) -> Iterator[list[socket.socket]]:
    """Connections that begin a request and do not end its headers."""
    held = []
    try:
        for _ in range(count):
            one = socket.create_connection(place(server), timeout=10)
            held.append(one)
            try:
                one.sendall(b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
            except OSError:  # closed at once: the ceiling
                continue
        yield held
    finally:
        for one in held:
            one.close()


def retrieve(server: Served, seconds: float) -> float:
    """How long a small request takes; it is sent again while there is no place for it."""
    started = time.monotonic()
    while True:
        try:
            reply = server.retrieve(queries=["river"], topk=1)
            assert reply.status == 200
            return time.monotonic() - started
        except OSError:
            assert time.monotonic() - started < seconds
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.hostile
def test_half_open_requests_neither_stop_the_server_nor_fill_its_log(offline) -> None:  # type: ignore[no-untyped-def]
    with served(offline.index, "-o", "header_timeout_s=2", files=256) as server:
        with half_open(server, 320) as held:
            assert retrieve(server, 20) < 20
            time.sleep(2.5)
            assert retrieve(server, 5) < 5, "all places are free again, though nobody closed"
            held[0].settimeout(5)
            assert _closed(held[0])
        assert len(server.stop()) < 5_000


def _closed(one: socket.socket) -> bool:
    try:
        return one.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.slow
@pytest.mark.hostile
def test_a_slow_header_is_not_lengthened_by_its_bytes(offline) -> None:  # type: ignore[no-untyped-def]
    with served(offline.index, "-o", "header_timeout_s=1") as server, half_open(server, 1) as (one,):
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                one.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - started < 3


def test_noise_is_answered_and_logged_a_few_times(offline) -> None:  # type: ignore[no-untyped-def]
    with served(offline.index) as server:
        for _ in range(200):
            with socket.create_connection(place(server), timeout=10) as one:
                one.sendall(b"\x16\x03\x01 no request\r\n\r\n")
                assert b"400" in one.recv(100)
        assert retrieve(server, 1) < 1
        assert server.stop().count("Invalid HTTP request") <= 11


def test_a_large_request_that_is_abandoned_holds_nobody_up(offline) -> None:  # type: ignore[no-untyped-def]
    vocabulary = "river town mayor novel harbour north weavers bridge " * 120
    queries = [f"{number} {vocabulary}" for number in range(1_000)]
    body = json.dumps({"queries": queries, "topk": 3}).encode()
    head = f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served(offline.index) as server:
        one = socket.create_connection(place(server), timeout=60)
        one.sendall(head)
        sender = threading.Thread(target=one.sendall, args=(body,))
        sender.start()
        sender.join()
        deadline = time.monotonic() + 30
        while server.metric("dgpo_requests_in_flight") < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        first = retrieve(server, 5)
        one.close()
        while server.metric("dgpo_abandoned_queries_total") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first < 5
        assert server.metric("dgpo_abandoned_queries_total") > 100
        assert server.metric("dgpo_requests_in_flight") == 0
        assert ask(f"{server.url}/health").json["status"] == "ok"
