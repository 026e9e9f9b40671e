"""Run folders: which run goes on, who may work in it, and what of its log survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dgpo_cli.core.config import load_toml
from dgpo_cli.core.disk import check_space
from dgpo_cli.core.run_dir import RunDir, is_locked, list_runs
from dgpo_cli.core.run_identity import config_digest
from dgpo_cli.core.run_record import read_run
from dgpo_cli.errors import ConfigError, InputError

CONFIG: dict[str, Any] = {"student": "a", "lr": 0.1, "seed": 3, "inner": {"k": 2, "none": None}}


def begin(config: dict[str, Any] | None = None, **options: Any) -> RunDir:
    """Open and release a run, as a process that ended would."""
    run = RunDir.open("kd", CONFIG if config is None else config, **options)
    run.close()
    return run


def test_a_new_run_says_what_it_does(folder: Path) -> None:
    run = begin()
    assert run.path == Path("runs/kd-0001")
    assert not run.resumed
    assert load_toml(run.path / "config.toml") == {"student": "a", "lr": 0.1, "seed": 3, "inner": {"k": 2}}
    record = run.record
    assert (record["command"], record["status"], record["seed"]) == ("kd", "running", 3)
    assert record["versions"]["python"].startswith("3.")


def test_the_newest_unfinished_run_of_the_same_settings_goes_on(folder: Path) -> None:
    first, other = begin(), begin({"student": "b"})
    again = begin(dict(reversed(CONFIG.items())))
    assert (first.path.name, other.path.name) == ("kd-0001", "kd-0002")
    assert again.path == first.path
    assert again.resumed


def test_a_finished_run_is_not_gone_on_with(folder: Path) -> None:
    with RunDir.open("kd", CONFIG) as run:
        run.finish({"em": 0.5})
    record = run.record
    assert (record["status"], record["result"]) == ("finished", {"em": 0.5})
    assert begin().path.name == "kd-0002"


def test_fresh_starts_anew_and_the_old_run_stays(folder: Path) -> None:
    first = begin()
    second = begin(fresh=True)
    assert second.path != first.path
    assert first.path.is_dir()
    assert not second.resumed
    assert begin().path == second.path


def test_resume_takes_the_named_run_only_if_it_does_the_same(folder: Path) -> None:
    first, second = begin(), begin(fresh=True)
    assert begin(resume=first.path).path == first.path
    with pytest.raises(ConfigError, match="other settings"):
        begin({"student": "b"}, resume=second.path)
    with pytest.raises(ConfigError, match="not a run folder"):
        begin(resume=Path("runs"))


def test_a_run_of_another_command_is_called_that(folder: Path) -> None:
    run = begin().path
    for place in ({"resume": run}, {"out": run}):
        with pytest.raises(ConfigError, match=f"^{run} is a run of `dgpo kd`, not of `dgpo eval`$") as told:
            RunDir.open("eval", CONFIG, **place)
        assert "--config" not in str(told.value.hint)


def test_out_names_the_folder(folder: Path) -> None:
    out = Path("here/mine")
    assert begin(out=out).path == out
    assert begin(out=out).resumed
    with pytest.raises(ConfigError, match="other settings"):
        begin({"student": "b"}, out=out)
    with RunDir.open("kd", CONFIG, out=out) as run:
        run.finish({})
    with pytest.raises(ConfigError, match="finished run"):
        begin(out=out)
    (out / "best").mkdir()
    assert not begin(out=out, fresh=True).resumed
    assert not (out / "best").exists()


@pytest.mark.parametrize("out", [None, Path("mine")])
def test_a_command_that_was_killed_after_its_run_finished_goes_on_with_it(folder: Path, out: Path | None) -> None:
    """What follows a run, such as remembering it, was not done: the same command does it, and trains no second one."""
    with RunDir.open("kd", CONFIG, out=out) as run:
        run.finish({"em": 0.5})
    (run.path / ".lock").write_text("1")
    with RunDir.open("kd", CONFIG, out=out) as again:
        assert (again.path, again.resumed) == (run.path, True)
    if out is None:
        assert begin().path != run.path
    else:
        with pytest.raises(ConfigError, match="finished run"):
            begin(out=out)


def test_out_never_mixes_with_a_folder_of_other_things(folder: Path) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("x")
    with pytest.raises(ConfigError, match="no run folder"):
        begin(out=Path("thesis"))
    assert [p.name for p in Path("thesis").iterdir()] == ["chapter.txt"]


def test_out_is_not_inside_another_run(folder: Path) -> None:
    outer = begin(out=Path("mine"))
    for out in (Path("mine/inner"), Path("mine/deep/er"), outer.path.resolve() / "inner"):
        with pytest.raises(ConfigError, match=r"er lies in the run mine"):
            begin(out=out)
    assert sorted(path.name for path in outer.path.iterdir()) == ["config.toml", "run.json"]
    assert begin(out=Path("mine")).resumed


def test_out_takes_a_folder_whose_run_was_killed_at_once(folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine/.lock").write_text("123")
    assert begin(out=Path("mine")).path == Path("mine")
    Path("keys").mkdir()
    Path("keys/lock").write_text("a file of the user's")
    with pytest.raises(ConfigError, match="no run folder"):
        begin(out=Path("keys"))


def test_paths_count_as_absolute(folder: Path) -> None:
    assert config_digest("kd", {"a": Path("x")}) == config_digest("kd", {"a": folder.resolve() / "x"})
    assert config_digest("kd", {"a": (1, 2)}) == config_digest("kd", {"a": [1, 2]})
    assert config_digest("kd", {"a": 1}) != config_digest("rl", {"a": 1})


def test_one_process_at_a_time(folder: Path) -> None:
    run = RunDir.open("kd", CONFIG)
    assert is_locked(run.path)
    with pytest.raises(ConfigError, match=rf"another process \(pid {os.getpid()}\) works in runs/kd-0001"):
        RunDir.open("kd", CONFIG)
    run.close()
    assert not is_locked(run.path)
    assert begin().resumed


HOLD = """
import sys, time
from dgpo_cli.core.run_dir import RunDir
run = RunDir.open("kd", {"a": 1})
run.log(1, {"x": 0.5})
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_behind(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ConfigError, match=f"pid {process.pid}"):
            begin({"a": 1})
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    run = begin({"a": 1})
    assert run.resumed
    assert run.metrics() == [{"step": 1, "x": 0.5}]


def test_numbers_never_come_back(folder: Path) -> None:
    begin()
    begin({"student": "b"})
    Path("runs/kd-0007").mkdir()
    Path("runs/kd-0007/mine.txt").write_text("x")
    Path("runs/kd-notes").mkdir()
    assert begin({"student": "c"}).path.name == "kd-0008"


def test_the_folder_of_a_start_that_was_killed_at_once_is_taken(folder: Path) -> None:
    begin()
    Path("runs/kd-0002").mkdir()
    Path("runs/kd-0002/.config.toml.123.writing").write_text("x")
    with RunDir.open("kd", CONFIG, fresh=True) as run:
        assert run.path.name == "kd-0002"
        assert begin({"student": "b"}).path.name == "kd-0003", "not one in which a process works"
    assert sorted(p.name for p in run.path.iterdir()) == ["config.toml", "run.json"]


@pytest.mark.parametrize("left", [".config.toml.123.writing", ".run.json.1.writing", ".lock", "config.toml"])
def test_out_goes_on_after_a_kill_between_any_two_files(folder: Path, left: str) -> None:
    Path("k1").mkdir()
    Path("k1", left).touch()
    assert begin(out=Path("k1")).path == Path("k1")
    assert sorted(p.name for p in Path("k1").iterdir()) == ["config.toml", "run.json"]
    Path("k1", ".metrics.jsonl.77.writing").touch()
    assert begin(out=Path("k1")).resumed
    assert sorted(p.name for p in Path("k1").iterdir()) == ["config.toml", "run.json"]


@pytest.mark.parametrize("dies_at", range(6))
def test_a_replacement_by_fresh_that_is_killed_ends_as_if_it_had_not_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Half of the old run is neither gone on with nor in the way."""

    class Killed(BaseException):
        pass

    with RunDir.open("kd", CONFIG, out=Path("mine")) as run:
        run.log(1, {"loss": 1.0})
        run.finish({"em": 0.5})
    for name in ("a", "b"):
        Path("mine", name).mkdir()
        Path("mine", name, "x").touch()
    calls = 0

    def dying(original: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise Killed
            return original(*given, **named)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "unlink"), (os, "replace"), (os, "rmdir")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(Killed):
            begin(out=Path("mine"), fresh=True)
    assert all(read_run(path)["status"] in ("finished", "discarded") for path in list_runs(Path()))
    run = begin(out=Path("mine"), fresh=read_run(Path("mine"))["status"] == "finished")
    assert not run.resumed
    assert sorted(p.name for p in run.path.iterdir()) == ["config.toml", "run.json"]
    assert run.record["status"] == "running"


def test_metrics_are_cut_back_to_the_saved_step(folder: Path) -> None:
    run = begin()
    for step in range(1, 5):
        run.log(step, {"loss": step / 2})
    run.log(3, {"eval_em": 0.1})
    with open(run.path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 5, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 3]
    run.cut_metrics(3)
    assert run.metrics() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 1.5},
        {"step": 3, "eval_em": 0.1},
    ]
    run.log(4, {"loss": 2.0})
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 3, 4]


def test_a_damaged_log_is_named(folder: Path) -> None:
    run = begin()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nxx\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        run.metrics()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"command": "kd"})])
def test_a_damaged_record_is_named(folder: Path, content: str) -> None:
    run = begin()
    (run.path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"runs/kd-0001/run\.json is damaged") as caught:
        list_runs()
    assert caught.value.hint == "move the folder runs/kd-0001 away"


@pytest.mark.parametrize("content", ["method = 3", "lr = ", "[rollout]\nx = [[[\n"])
def test_damaged_settings_of_an_unfinished_run_hold_up_no_new_one(folder: Path, content: str) -> None:
    first = begin()
    (first.path / "config.toml").write_text(content)
    with RunDir.open("kd", CONFIG | {"lr": 0.2}) as second:
        assert not second.resumed and "config.toml" in second.left


def test_space_is_checked_before_it_runs_out(folder: Path) -> None:
    check_space(folder, 1)
    with pytest.raises(ConfigError, match="GB of disk") as caught:
        check_space(folder, 10**18)
    assert "dgpo runs --prune" in str(caught.value.hint)


def test_an_unfinished_run_that_does_not_go_on_is_named_with_the_reason(folder):
    Path("data").write_text("one")
    inputs = {"data": "1"}
    for changed, of, says in (
        ({"lr": 2.0}, inputs, "lr: 1.0 there, 2.0 here"),
        ({}, {"data": "2"}, "trajectories: data has other contents than data had"),
    ):
        config = {"student": "a", "trajectories": "data", "lr": 1.0}
        last = RunDir.open("kd", config, inputs=inputs, fresh=True)
        last.close()
        with RunDir.open("rl", config | changed, inputs=of, root=Path("runs")) as other:
            assert other.left == ""
            other.finish({})
        with RunDir.open("kd", config | changed, inputs=of) as run:
            assert not run.resumed
            assert run.left == f"{last.path} is unfinished and stays as it is: {says}"
            run.finish({})
        with RunDir.open("kd", config | changed, inputs=of) as again:
            assert again.left == ""


def test_a_run_of_other_settings_is_met_with_options_that_the_command_has(tmp_path):
    from dgpo_cli.cli import app

    known = typer.main.get_command(app).commands
    for command in ("make-questions", "distill-data", "kd", "rl", "eval"):
        RunDir.open(command, {"seed": 1}, out=tmp_path / command).close()
        with pytest.raises(ConfigError) as caught:
            RunDir.open(command, {"seed": 2}, out=tmp_path / command)
        has_config = any("--config" in parameter.opts for parameter in known[command].params)
        assert ("--config" in caught.value.hint) is has_config
        assert has_config or ("--out" in caught.value.hint and "--fresh" in caught.value.hint)
