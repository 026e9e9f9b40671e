"""Every option of every command, as the app itself lists them, with values that it cannot mean.

Refused in one line with status 1 or 2, and then nothing is written; or taken, and then nothing is lost.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from tests.offline import write_one_trajectory

from dgpo_cli import cli

LONG = "x" * 5000
NUMBERS = ["0", "-1", "1e308", "nan", "inf", "", " ", LONG, "1_0", "\u0663", "9" * 25, "0.5", "x", "dir"]
TEXTS = [
    "0", "-1", "nan", "", " ", LONG, "dir", "file", "empty", "missing/deep/path", "new\nline", "qu'o\"te", "caf\udce9",
    "secret", "loop", "dangling", "bytes", "fifo", "device", "http://127.0.0.1:9", "a,b", "file/below", ".", "..", "~",
    "\x1b[2J", "\u202e", "\U0001f98a", "$(touch pwned)", "json:dumps", "json:none", "meta",
]  # fmt: skip
WRONG = ("", " ", "nan", "caf\udce9")  # for every number
# A call of each command that is right but for the option; a command that is missing here gets folders of text.
RIGHT = {
    "quickstart": "--dry-run",
    "index build": "{corpus} --out ix",
    "index merge": "p1 p2 --out ix",
    "index check": "--index {index}",
    "index tune": "--index {index} --questions {few}",
    "index withhold": "--index {index} --questions {few} --out wh",
    "index wiki-18": "",
    "search": "who --index {index}",
    "learn": "docs --dry-run",
    "make-questions": "docs --no-model --dry-run",
    "audit": "{few} --index {index}",
    "distill-data": "--teacher {teacher} --index {index} --data {few} --dry-run",
    "kd": "--method seqkd --student {student} --data {trajectories} --dry-run",
    "rl": "--method grpo --student {student} --index {index} --data {train} --steps 1 --batch-size 4 --dry-run",
    "eval": "--model {student} --bench tinyworld --bench-dir {world} --index {index} --dry-run",
    "report": "run",
    "chat": "--model {student} --index {index}",
    "export": "{student} ex",
    "reproduce": "--dry-run",
    "serve": "--model {student} --index {index} --port 0",
    "mcp": "--index {index} --port 0",
    "plan": "smollm2-135m-laptop",
    "recipes": "", "models": "", "runs": "", "doctor": "",
}  # fmt: skip


def commands() -> Iterator[tuple[str, Any]]:
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        for below, sub in getattr(command, "commands", {"": command}).items():
            yield f"{name} {below}".strip(), sub


COMMANDS = dict(commands())


def valued(command: Any) -> list[Any]:
    return [one for one in command.params if one.name != "help" and not getattr(one, "is_flag", False)]


def values(parameter: Any) -> list[str]:
    kind = str(parameter.type_descriptor.annotation)
    return NUMBERS if "int" in kind or "float" in kind else TEXTS


def argv(name: str, parameter: Any, value: str, places: dict[str, Path]) -> list[str]:
    """The right call of the command with this value in place of its own."""
    required = [one for one in COMMANDS[name].params if one.required and one.param_type_name == "argument"]
    said = [part.format(**places) for part in RIGHT.get(name, " ".join("docs" for _ in required)).split()]
    if parameter.param_type_name == "argument":
        arguments = [one for one in COMMANDS[name].params if one.param_type_name == "argument"]
        at = arguments.index(parameter)
        before = next((place for place, part in enumerate(said) if part.startswith("-")), len(said))
        said[min(at, before) : min(at + 1, before)] = [value]
        return [*name.split(), *said]
    for option in parameter.opts:
        while option in said:
            del said[said.index(option) : said.index(option) + 2]
    return [*name.split(), *said, f"{max(parameter.opts, key=len)}={value}"]


@pytest.fixture(scope="module")
def places(offline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("right")
    few = made / "few.jsonl"
    few.write_text("".join(offline.questions("test").read_text().splitlines(keepends=True)[:3]))
    return {
        "index": offline.index, "teacher": offline.teacher, "student": offline.student, "corpus": offline.corpus,
        "train": offline.questions("train"), "world": offline.folder / "world", "few": few,
        "trajectories": write_one_trajectory(offline, made / "t.jsonl"),
    }  # fmt: skip


@pytest.fixture
def around(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with things that a value may name by mistake; servers that would run until Ctrl-C end at once."""
    from dgpo_cli.export import request
    from dgpo_cli.serving import mcp_tools, run

    monkeypatch.setattr(run, "serve", lambda *_, **told: told["ready"]())
    monkeypatch.setattr(mcp_tools, "serve_stdio", lambda *_: None)
    monkeypatch.setattr(request, "check_push", lambda *_: (_ for _ in ()).throw(cli.ConfigError("no network")))
    monkeypatch.setattr(cli, "app", typer.main.get_command(cli.app))  # built once
    monkeypatch.setenv("COLUMNS", "80")
    for name, content in (("file", b"a file\n"), ("empty", b""), ("secret", b"x"), ("bytes", bytes(range(256)))):
        (folder / name).write_bytes(content)
    (folder / "qu'o\"te").write_text('{"id": "a", "question": "Who?", "golden_answers": ["Ada"]}\n')
    (folder / "new\nline").write_text("x")
    (folder / "secret").chmod(0)
    for name in ("dir", "docs"):
        (folder / name).mkdir()
    (folder / "docs" / "a.txt").write_text("Oslo is the capital of Norway. It lies on a fjord.\n\nBergen is a town.\n")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("gone/file")
    os.mkfifo(folder / "fifo")
    with suppress(PermissionError):  # only root makes devices, and only root could replace them
        os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield folder


def seen(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else path.readlink() if stat.S_ISLNK(mode) else b""
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return {name: what for name, what in found.items() if not name.startswith(".dgpo")}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), pytest.param(40, id="sample")])
def test_a_value_is_refused_in_one_line_or_loses_nothing(
    dgpo: Callable[..., Any], around: Path, places: dict[str, Path], name: str, share: int
) -> None:
    cases = [(one, value) for one in valued(COMMANDS[name]) for value in values(one)]
    before = seen(around)
    for parameter, value in cases[::share]:
        call = argv(name, parameter, value, places)
        ended = dgpo(*call)
        after = seen(around)
        told = SimpleNamespace(call=[part[:60] for part in call], err=ended.err[-2000:], out=ended.out[-500:])
        assert ended.status in (0, 1, 2), told
        assert "Traceback" not in ended.out + ended.err and "\x1b" not in ended.out + ended.err, told
        lost = {entry for entry in before if after.get(entry) != before[entry]} - {"empty"}
        assert not lost, (lost, told)
        added = sorted(set(after) - set(before))
        if ended.status:
            assert len(ended.errors) == 1 and len(ended.errors[0]) < 1200, told
            assert not added, (added, told)
        else:
            assert not (values(parameter) is NUMBERS and value in WRONG), told
        for entry in reversed(added):
            path = around / entry
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (around / "empty").write_bytes(b"")
