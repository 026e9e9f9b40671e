"""Commands where a person or a container has them: a folder of somebody else, one that is gone, with an odd name.

Each works, or says in one line what it lacks; nothing is called damaged that could not be opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from tests.offline import Offline
from tests.processes import forked

from dgpo_cli.core.machine_faults import pass_on
from dgpo_cli.errors import ModelError
from dgpo_cli.models.load_errors import explain
from dgpo_cli.models.tokenizer_errors import tokenizer_errors

_CAPABILITIES = 0x20080522  # version 3 of <linux/capability.h>


def without_privileges() -> None:
    """Root reads and writes whatever it likes; without its capabilities permissions hold for it too."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


@pytest.fixture
def project(offline: Offline, searcher: Path, folder: Path) -> Path:
    """Index, questions and a model, in a folder of their own."""
    shutil.copytree(offline.index, folder / "index")
    shutil.copytree(searcher, folder / "model")
    shutil.copytree(offline.folder / "world", folder / "world")
    return folder


EVAL = ("eval", "--model", "./model", "--index", "index", "--bench", "tinyworld", "--bench-dir", "world", "--limit", 1)


@pytest.mark.parametrize(
    "file",
    ["model/model.safetensors", "model/tokenizer.json", "model/config.json", "index/manifest.json", "index/offsets.npy",
     "index/passages.jsonl", "world/test.jsonl"],
)  # fmt: skip
def test_a_file_that_may_not_be_read_is_not_called_damaged(project: Path, file: str) -> None:
    (project / file).chmod(0)
    status, told = forked(project, *EVAL, prepare=without_privileges)
    errors = [line for line in told if line.startswith("error:")]
    assert status == 1 and len(errors) == 1, told
    assert "ermission denied" in errors[0] and "damaged" not in errors[0] and "no weights" not in errors[0]
    hint = told[-1]
    assert hint.startswith("hint: give ") and not any(word in hint for word in ("export", "build", "convert")), hint


LACKS: dict[str, tuple[Exception, type[BaseException], str]] = {
    "open files": (OSError(errno.EMFILE, "Too many open files", "x"), OSError, "Too many open files"),
    "permission, of a library in Rust": (SafetensorError("x (os error 13)"), OSError, "Permission denied"),
    "a disk": (OSError(errno.EIO, "Input/output error", "x"), OSError, "Input/output error"),
    "memory": (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), MemoryError, ""),
}


@pytest.mark.parametrize("lack", LACKS)
def test_a_lack_of_the_machine_says_nothing_against_a_model(lack: str) -> None:
    error, kind, reason = LACKS[lack]
    wrapped = OSError("it has no file named model.safetensors")
    wrapped.__context__ = error
    with pytest.raises(kind, match=reason or None):
        explain(wrapped, "model", local=True)
    with pytest.raises(kind, match=reason or None), tokenizer_errors("model"):
        raise Exception("the library's own") from error


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(2, "no such file", "x"), SafetensorError("header")]
)
def test_other_errors_do(error: Exception) -> None:
    pass_on(error)
    assert isinstance(explain(error, "model", local=True), ModelError)


def test_what_was_made_is_not_lost_where_the_folder_cannot_remember_it(project: Path) -> None:
    (project / ".dgpo").mkdir(mode=0o555)
    status, told = forked(project, "index", "world/corpus.jsonl", "--out", "made", prepare=without_privileges)
    assert status == 0 and (project / "made" / "manifest.json").is_file(), told
    assert any("the next command will not know of this one" in line and ".dgpo" in line for line in told)
    assert forked(project, "search", "a", "--index", "made", prepare=without_privileges)[0] == 0


@pytest.mark.parametrize("command", [("index", "c.jsonl"), ("runs",), ("search", "a", "--index", "index"), ("report",)])
def test_a_working_folder_that_is_gone(tmp_path: Path, command: tuple[str, ...]) -> None:
    def leave() -> None:
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()

    status, told = forked(tmp_path, *command, prepare=leave)
    assert not any("Traceback" in line for line in told), told
    assert status == 0 or len([line for line in told if line.startswith("error:")]) == 1


def test_a_working_folder_whose_name_is_no_text(offline: Offline, tmp_path: Path) -> None:
    """Records hold the paths of what was made, as text."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    status, told = forked(tmp_path, "index", offline.corpus, "--out", "i", prepare=lambda: os.chdir(place))
    assert status == 1 and len(told) == 2 and "caf\\xe9: not UTF-8" in told[0] and told[1].startswith("hint: "), told
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "name", ["a b 'q\" x", "äöü", "a\nb", "-rf", "[red]x[bold]", "a:b,c=d", "~root", "%s{0}$HOME`id`#"]
)
def test_a_folder_of_any_name(
    project: Path, name: str, dgpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = project / name
    place.mkdir()
    monkeypatch.chdir(place)
    made = dgpo("index", "../world/corpus.jsonl", "--out", "i")
    assert made.status == 0, made.err
    found = dgpo("search", "Where did Trelu study?")
    assert found.status == 0 and found.out, found.err
    asked = dgpo(*map(str, EVAL[:1]), "--model", "../model", "--index", "i", "--bench", "tinyworld", "--bench-dir",
                 "../world", "--limit", "1")  # fmt: skip
    assert asked.status == 0, asked.err
    assert "eval-0001" in dgpo("runs").out
    assert dgpo("report").status == 0 and (place / "report.html").is_file()
