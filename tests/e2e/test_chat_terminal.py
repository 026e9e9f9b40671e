"""`dgpo chat` in a pseudo-terminal: a process of its own, keys, and the screen that comes of them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import stat
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dgpo_cli.qa_sets import read_questions

PROMPT = "\x1b[?2004h"  # where it begins, the terminal is asked to mark what is pasted
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
WAIT_S = 90
TEXT = "A tower of stone that stands on the western hill above the harbour, " * 3


class Terminal:
    """80 x 24 cells, and a process that has no other."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.process, self._file = pty.fork()
        if not self.process:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execve(argv[0], argv, environment)
        self.seen, self._read = "", 0

    def until(self, text: str) -> str:
        """What is shown up to `text`, from where the last call ended."""
        deadline = time.monotonic() + WAIT_S
        while (place := self.seen.find(text, self._read)) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[self._read :]!r}"
            if select.select([self._file], [], [], 0.5)[0]:
                self.seen += os.read(self._file, 1 << 16).decode(errors="replace")
        shown, self._read = self.seen[self._read : place], place + len(text)
        return CONTROLS.sub("", shown)

    def shows(self, text: str) -> bool:
        """Whether it stands in what has come since the last call of `until`."""
        while select.select([self._file], [], [], 0)[0]:
            self.seen += os.read(self._file, 1 << 16).decode(errors="replace")
        return text in self.seen[self._read :]

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def status(self) -> int:
        try:
            while os.read(self._file, 1 << 16):
                pass
        except OSError:  # nobody is at the other end
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


class Shelf:
    """A search server that answers at once, or, while `held`, not before it is let go."""

    def __init__(self) -> None:
        self.asked, self.free = threading.Event(), threading.Event()
        self.free.set()
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
                shelf.asked.set()
                shelf.free.wait(WAIT_S)
                hit = {"document": {"id": "1", "contents": f'"Tower"\n{TEXT}'}, "score": 2.5}
                content = json.dumps({"result": [[hit] for _ in queries]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with suppress(BrokenPipeError):  # who was interrupted does not wait
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    thread = threading.Thread(target=shelf.server.serve_forever, daemon=True)
    thread.start()
    yield shelf
    shelf.free.set()
    shelf.server.shutdown()
    shelf.server.server_close()


@pytest.mark.slow
def test_a_conversation_and_the_next_one(searcher: Path, offline, shelf: Shelf, folder: Path) -> None:
    question = read_questions(offline.questions("train"))[0].text
    argv = [sys.executable, "-m", "dgpo_cli", "chat", "--model", str(searcher), "--index", shelf.url]
    environment = os.environ | {"XDG_STATE_HOME": str(folder), "TERM": "xterm-256color", "NO_PROXY": "127.0.0.1"}
    chat = Terminal([*argv, "--device", "cpu"], environment)
    assert "Ask a question" in chat.until(PROMPT)

    chat.type(f"{question}\r")
    shown = chat.until(PROMPT)
    assert f"> {question}" in shown and "searched:" in shown and "1. Tower (2.50)" in shown
    shown_lines = shown.splitlines()
    begin = next(line for line in shown_lines if "A tower of stone" in line)
    assert begin.endswith(" …") and len(begin) <= 80  # the first line of it, cut between words

    shelf.free.clear()
    shelf.asked.clear()
    chat.type(f"{question}\r")
    assert shelf.asked.wait(WAIT_S)
    chat.type("typed meanwhile\r")
    time.sleep(0.2)
    chat.type("\x03")
    chat.until("stopped")
    shelf.free.set()
    chat.until(PROMPT)

    chat.type("/pa\t\r")
    shown = chat.until(PROMPT)
    assert "> /passages" in shown and "Tower (2.50), found by: " in shown
    lines = [line for line in shown.splitlines() if line.startswith("   ")]
    assert " ".join(" ".join(lines).split()).startswith(TEXT.strip())
    assert all(len(line) <= 80 for line in lines)

    chat.type("\x1b[200~one\ntwo\x1b[201~")
    chat.type("\r")
    assert "> one two" in chat.until(PROMPT)
    assert "typed meanwhile" not in chat.seen
    chat.type("\x04")
    assert chat.status() == 0

    history = folder / "dgpo" / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    chat = Terminal([*argv, "--device", "cpu"], environment)
    chat.until(PROMPT)
    for _ in range(30):  # the history is read beside the first prompt
        chat.type("\x1b[A\x1b[A")
        time.sleep(0.5)
        if chat.shows("/passages"):
            break
    chat.type("\r")
    assert "> /passages" in chat.until("there is no episode yet")
    chat.until(PROMPT)
    chat.type("/quit\r")
    assert chat.status() == 0
