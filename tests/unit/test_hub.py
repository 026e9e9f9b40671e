"""Whether the hub answers is asked once, and every way of not answering has its words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dgpo_cli.core.hub import unreachable


@pytest.fixture(autouse=True)
def _ask_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    unreachable.cache_clear()
    yield
    unreachable.cache_clear()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


def test_set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert unreachable() == "HF_HUB_OFFLINE is set"


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        point_at(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "does not answer" in (unreachable() or "")
    point_at(monkeypatch, "nonsense")
    assert "does not answer" in (unreachable() or ""), "asked once only"
    unreachable.cache_clear()
    assert "unknown url type" in (unreachable() or "")


@pytest.mark.parametrize("status", [200, 403, 405])
def test_any_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        assert unreachable() is None
