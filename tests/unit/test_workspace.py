"""The memory of a working folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import InputError


def test_given_beats_remembered_beats_default(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / ".dgpo")
    assert workspace.resolve("index", None, "fallback").value == "fallback"
    assert workspace.resolve("index", None, "fallback").origin == "default"
    workspace.remember(by="dgpo index", index=Path("/data/wiki"))
    remembered = Workspace(tmp_path / ".dgpo").resolve("index", None, "fallback")
    assert remembered.value == "/data/wiki"
    assert remembered.origin.startswith("remembered from `dgpo index`, 2")
    given = workspace.resolve("index", "other")
    assert (given.value, given.origin) == ("other", "given")


def test_keys_are_kept_apart_and_none_forgets_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.remember(by="dgpo kd", student="a", model="a")
    workspace.remember(by="dgpo rl", model="b", student=None)
    assert workspace.resolve("student", None).value is None
    assert workspace.resolve("model", None).value == "b"
    assert "dgpo rl" in workspace.resolve("model", None).origin


def test_an_unknown_key_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not 'indx'"):
        Workspace(tmp_path).remember(by="x", indx="a")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", json.dumps({"index": {"value": "x"}}).encode()])
def test_a_damaged_memory_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "workspace.json").write_bytes(content)
    with pytest.raises(InputError, match="is damaged") as caught:
        Workspace(tmp_path).resolve("index", None)
    assert caught.value.hint == f"delete {tmp_path / 'workspace.json'}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_where_nothing_can_be_kept_what_was_made_is_not_called_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    workspace = Workspace(tmp_path / ".dgpo")
    workspace.remember(by="dgpo index", index="old")
    monkeypatch.setattr("dgpo_cli.core.workspace.write_atomic", refuse)
    workspace.remember(by="dgpo index", index="new")
    assert os.strerror(number) in caplog.text and str(workspace.path) in caplog.text
    assert workspace.resolve("index", None).value == "old"


def test_a_quickstart_without_a_set_of_test_questions_forgets_what_was_asked_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgpo_cli.commands.quickstart.remember import remember

    monkeypatch.chdir(tmp_path)
    for made in ("q/world", "r/runs/demonstrations"):
        Path(made).mkdir(parents=True)
    models = {"teacher": "t", "student": "s", "model": "m"}
    remember("dgpo quickstart", Path("q"), trajectories="distill-data", bench="tinyworld", **models)
    assert Workspace().resolve("bench_dir", None).value == "./q/world"
    remember("dgpo quickstart --real", Path("r"), trajectories="demonstrations", **models)
    assert [Workspace().resolve(key, None).value for key in ("bench", "bench_dir")] == [None, None]
    assert Workspace().resolve("trajectories", None).value == "./r/runs/demonstrations"
