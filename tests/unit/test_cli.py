"""The command line as a whole: every error is one line, every way to end has its status."""

from __future__ import annotations

import errno
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

NO_MEMORY = [
    "error: not enough memory",
    (
        "hint: free memory (`dgpo doctor`), or take less at once: --batch-size in eval, -o rollout.wave elsewhere; "
        "what was saved is kept"
    ),
]
MORE_FILES = "hint: allow more: `ulimit -n 4096`, then the same command again"
NO_FILES = ["error: too many open files: Too many open files: a/b", MORE_FILES]
NO_FILES_BARE = ["error: too many open files: Too many open files", MORE_FILES]


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (InputError("a\nb", hint="do\nthis"), 1, ["error: a b", "hint: do this"]),
        (InputError("a"), 1, ["error: a"]),
        (InputError("a" * 600 + "b" * 600), 1, ["error: " + "a" * 499 + "…" + "b" * 500]),
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
        (MemoryError(), 1, NO_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1, NO_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, NO_MEMORY),
        (OSError(errno.EMFILE, "Too many open files", "a/b"), 1, NO_FILES),
        (RuntimeError("cannot open: Too many open files (os error 24)"), 1, NO_FILES_BARE),
        (InputError("\x1b[2Ja\x9b", hint="\u202eb"), 1, ["error: \ufffd[2Ja\ufffd", "hint: \ufffdb"]),
        (
            OSError(errno.EIO, "Input/output error", "a/b"),
            1,
            [
                "error: the disk fails: Input/output error: a/b",
                "hint: see to the disk or its connection; what was saved is kept",
            ],
        ),
        (
            RuntimeError("Symlink loop from '/a/loop'"),
            1,
            ["error: Too many levels of symbolic links: /a/loop", "hint: check the path"],
        ),
        (
            RuntimeError("Could not determine home directory."),
            1,
            ["error: No such user, or no home folder: ~", "hint: check the path"],
        ),
        (
            ValueError("embedded null byte"),
            1,
            ["error: No path holds a NUL character: byte", "hint: check the path"],
        ),
        (KeyboardInterrupt(), 130, ["stopped; the same command goes on from what was saved (`dgpo runs` lists it)"]),
    ],
    ids=[
        "hint",
        "plain",
        "very-long",
        "disk-full",
        "disk-full-in-rust",
        "permission",
        "path",
        "memory",
        "memory-of-a-gpu",
        "memory-of-system",
        "files",
        "files-in-rust",
        "controls",
        "failing-disk",
        "loop-of-links",
        "no-home",
        "nul-in-a-path",
        "interrupt",
    ],
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
    "error", [OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError(errno.ENOENT, "x"), ValueError("bug")]
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


def _parameters(command: Any, path: str = "dgpo") -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield from _parameters(child, f"{path} {name}")
    for parameter in command.get_params(typer.Context(command)):
        yield path, parameter


def test_a_short_option_has_one_meaning_and_a_flag_no_type() -> None:
    meanings: dict[str, set[str]] = {}
    for path, parameter in _parameters(typer.main.get_command(cli.app)):
        if parameter.param_type_name != "option":
            continue
        long = max(parameter.opts, key=len)
        for name in parameter.opts:
            if not name.startswith("--"):
                meanings.setdefault(name, set()).add(long)
        if parameter.is_flag:
            assert parameter.metavar in ("", None) and not parameter.display_type_rich(None), (path, long)
    assert meanings["-o"] == {"--set"}
    assert {name: found for name, found in meanings.items() if len(found - {name}) > 1} == {}


def test_help_shows_no_type_for_a_flag(dgpo: Callable[..., Any]) -> None:
    for command in (["runs"], ["index"], ["index", "check"], ["eval"], []):
        text = dgpo(*command, "--help").out
        assert "--help" in text and "bool" not in text


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


@pytest.mark.parametrize(
    "argv",
    [["\x1b[2J"], ["search", "--\x9b31m"], ["search", "q", "--top-k", "\x1b]0;x\x07"], ["models", "\u202e"]],
    ids=repr,
)
def test_wrong_usage_shows_what_was_typed_without_obeying_it(dgpo: Callable[..., Any], argv: list[str]) -> None:
    ended = dgpo(*argv)
    assert ended.status == 2 and ended.out == "" and ended.errors
    assert not set("\x1b\x07\x9b\u202e") & set(ended.err)


def test_ctrl_c_before_the_command_began_is_silent(folder: Path) -> None:
    """A module of ours is replaced by one that is interrupted while it is imported, as an extension module may be."""
    (folder / "bm25s.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('half')\n"
    )
    program = "import sys; sys.argv = ['dgpo', 'x']; from dgpo_cli.__main__ import main; import bm25s; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", ""), ended.stderr


def test_next_to_nothing_is_imported_before_ctrl_c_is_answered() -> None:
    """Until then it ends in a traceback; `typing` and `re` alone made that as long as all of Python's own start."""
    program = "import sys; before = {*sys.modules}; import dgpo_cli.core.interrupts; print(*{*sys.modules} - before)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(ended.stdout.split())
    assert {"dgpo_cli", "dgpo_cli.core.interrupts"} <= imported
    assert not {"typing", "re"} & imported


@pytest.mark.slow
def test_ctrl_c_in_the_first_seconds_is_130(folder: Path) -> None:
    for number in range(30):
        process = subprocess.Popen(
            [sys.executable, "-m", "dgpo_cli", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.06 + 0.05 * number)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 130)
        assert process.returncode == 0 or not err or err.splitlines()[0].startswith("stopped; ")


def test_an_argument_that_is_no_text_is_one_line(dgpo: Callable[..., Any]) -> None:
    ended = dgpo("search", "caf\udce9")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        "error: caf\\xe9: not UTF-8",
        "hint: write it in UTF-8, or rename the file so",
    ]


@pytest.mark.parametrize(
    ("argv", "after"),
    [
        (["runs", "--root", ""], " to --root"),
        (["runs", "--root="], " to --root"),
        (["report", " "], ""),
        (["quickstart", "--dry-run", "--out", "\u00a0"], " to --out"),
    ],
)
def test_an_empty_text_is_no_folder(dgpo: Callable[..., Any], argv: list[str], after: str) -> None:
    """A shell variable that is not set: the path would mean this folder."""
    ended = dgpo(*argv)
    assert ended.status == 1
    assert ended.err.splitlines() == [
        f"error: an empty text was given{after}",
        "hint: give a value, or leave the option out",
    ]


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", "x"), ("0", "0"), ("2", "2"), ("-1", "2"), ("0", "1.5")])
def test_variables_of_no_launcher_are_one_line(
    dgpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    ended = dgpo("runs")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        f"error: RANK is '{rank}' and WORLD_SIZE is '{size}': no place of a process among those of a launch",
        "hint: unset both, or start with `accelerate launch`",
    ]
