"""The command line as a whole: every error is one line, every way to end has its status."""

from __future__ import annotations

import errno
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from dgpo_cli import __version__, cli
from dgpo_cli.errors import InputError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `dgpo fail` raise the given exception."""

    def install(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)

        def fail() -> None:
            raise error

        app.command("fail")(fail)
        app.callback()(lambda: None)
        monkeypatch.setattr(cli, "app", app)

    return install


HINT_FULL = "hint: free some space, or write to another disk; what was saved is kept"
FULL = ["error: no room to write: No space left on device: runs/x", HINT_FULL]
FULL_BARE = ["error: no room to write: No space left on device", HINT_FULL]


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (InputError("a\nb", hint="do\nthis"), 1, ["error: a b", "hint: do this"]),
        (InputError("a"), 1, ["error: a"]),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, FULL),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 1, FULL_BARE),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            1,
            ["error: no permission: Permission denied: /root/x", "hint: give a place that you may read and write"],
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.txt/runs"),
            1,
            ["error: Not a directory: a.txt/runs", "hint: check the path"],
        ),
        (KeyboardInterrupt(), 130, ["stopped; the same command goes on from what was saved (`dgpo runs` lists it)"]),
    ],
    ids=["hint", "plain", "disk-full", "disk-full-in-rust", "permission", "path", "interrupt"],
)
def test_each_way_to_fail(
    failing: Callable[[BaseException], None],
    dgpo: Callable[..., Any],
    error: BaseException,
    status: int,
    lines: list[str],
) -> None:
    failing(error)
    ended = dgpo("fail")
    assert (ended.status, ended.err.splitlines(), ended.out) == (status, lines, "")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError(errno.ENOENT, "x"), ValueError("bug")]
)
def test_a_bug_keeps_its_traceback(failing: Callable[[BaseException], None], error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)):
        cli.main(["fail"])


def test_debug_shows_the_traceback_of_a_user_error_too(
    failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(InputError("a"))
    monkeypatch.setenv("DGPO_DEBUG", "1")
    with pytest.raises(InputError):
        cli.main(["fail"])


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["runs", "--no-such"], "No such option: --no-such", "`dgpo runs --help`"),
        (["nothing"], "No such command 'nothing'.", "`dgpo --help`"),
        (["runs", "--keep", "x"], "Invalid value for '--keep'", "`dgpo runs --help`"),
        (["runs", "extra"], "Got unexpected extra argument", "`dgpo runs --help`"),
    ],
    ids=["option", "command", "value", "argument"],
)
def test_wrong_usage_is_one_line_and_status_2(
    dgpo: Callable[..., Any], argv: list[str], message: str, hint: str
) -> None:
    ended = dgpo(*argv)
    assert ended.status == 2
    first, second = ended.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: {hint} shows what it takes"


def test_version_and_help(dgpo: Callable[..., Any]) -> None:
    assert dgpo("--version").out == f"dgpo {__version__}\n"
    assert dgpo("--help").out == dgpo().out == dgpo("-h").out
    assert dgpo("--help").status == dgpo().status == 0


def test_the_module_is_the_command(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", "runs", "--json"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == '{"runs": []}\n'


def test_a_reader_that_stops_reading_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", "runs"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert ended.stderr == b""


INTERRUPTED = """
import time, typer
from dgpo_cli import cli
app = typer.Typer()
@app.command()
def wait():
    print("ready", flush=True)
    time.sleep(60)
app.callback()(lambda: None)
cli.app = app
cli.main(["wait"])
"""


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines() == ["stopped; the same command goes on from what was saved (`dgpo runs` lists it)"]


@pytest.mark.slow
def test_help_is_quick() -> None:
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dgpo_cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) <= 0.6
