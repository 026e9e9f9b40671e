"""What `dgpo runs` lists and what pruning takes away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_list import plan_prune, remove, summarize_runs
from dgpo_cli.core.workspace import Workspace


def make(command: str, number: int, *, finished: bool = True, created: str | None = None) -> Path:
    with RunDir.open(command, {"number": number}, fresh=True) as run:
        (run.path / "state").mkdir()
        (run.path / "state" / "weights").write_bytes(b"x" * 1000)
        (run.path / "best").mkdir()
        (run.path / "best" / "weights").write_bytes(b"x" * 100)
        run.log(1, {"loss": 1.0})
        run.log(2, {"eval_em": 0.25})
        run.log(4, {"eval_em": 0.125})
        if finished:
            run.finish({})
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(record | {"created": created or f"2026-01-{number:02d}T00:00:00"}))
    return run.path


def test_a_summary_tells_status_steps_score_and_size(folder: Path) -> None:
    make("kd", 1)
    make("rl", 2, finished=False)
    with RunDir.open("eval", {}):
        Path("runs/bad").mkdir()
        Path("runs/bad/run.json").write_text("{")
        first, second, third, damaged = summarize_runs(Path("runs"))
    assert (first.path.name, first.status, first.command, first.steps, first.best_em) == (
        "kd-0001", "finished", "kd", 4, 0.25,
    )  # fmt: skip
    assert first.num_bytes == sum(p.stat().st_size for p in first.path.rglob("*") if p.is_file())
    assert (second.status, third.status, third.steps, third.best_em) == ("unfinished", "running", None, None)
    assert damaged.status == "damaged"
    assert damaged.problem is not None
    assert "run.json is damaged" in damaged.problem


def test_pruning_takes_the_state_of_finished_runs_only(folder: Path) -> None:
    done, going = make("kd", 1), make("rl", 2, finished=False)
    plan = plan_prune(Path("runs"))
    assert [(r.path, r.num_bytes) for r in plan] == [(done / "state", 1000)]
    assert (done / "state").exists(), "planning removes nothing"
    assert remove(plan) == 1000
    assert not (done / "state").exists()
    assert (done / "best" / "weights").exists()
    assert (going / "state").exists()
    assert plan_prune(Path("runs")) == []


def test_keep_counts_per_command_and_spares_what_is_protected_unfinished_or_running(folder: Path) -> None:
    kd = [make("kd", n) for n in range(1, 5)]
    rl = make("rl", 5)
    unfinished = make("kd", 6, finished=False)
    plan = plan_prune(Path("runs"), keep=1, protected=[kd[1].resolve()])
    assert {r.path for r in plan} == {kd[3] / "state", kd[2], kd[1] / "state", kd[0], rl / "state"}
    remove(plan)
    assert sorted(p.name for p in Path("runs").iterdir()) == sorted(p.name for p in [kd[1], kd[3], rl, unfinished])


@pytest.fixture
def runs(dgpo: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *argv: dgpo("runs", *argv)


def test_the_command_lists(runs: Callable[..., Any]) -> None:
    assert "no runs under runs" in runs().out
    make("kd", 1)
    listed = runs()
    assert "runs/kd-0001" in listed.out
    assert "0.250" in listed.out
    assert json.loads(runs("--json").out)["runs"][0]["best_em"] == 0.25


def test_the_command_removes_only_when_told_to(runs: Callable[..., Any], folder: Path) -> None:
    path = make("kd", 1)
    refused = runs("--prune")
    assert refused.status == 1
    assert refused.errors == ["error: nobody is there to confirm"]
    assert "runs/kd-0001/state" in refused.out
    assert (path / "state").exists()
    done = runs("--prune", "--yes", "--json")
    assert json.loads(done.out) == {
        "planned": ["runs/kd-0001/state"],
        "removed": ["runs/kd-0001/state"],
        "bytes": 1000,
    }
    assert "nothing to remove" in runs("--prune").out


def test_the_command_spares_what_the_next_command_would_take(runs: Callable[..., Any], folder: Path) -> None:
    old, new = make("kd", 1), make("kd", 2)
    Workspace().remember(by="dgpo kd", student=str(old / "best"))
    assert json.loads(runs("--prune", "--keep", "1", "--yes", "--json").out)["removed"] == [
        str(new / "state"),
        str(old / "state"),
    ]
    assert (old / "best").exists()


def test_keep_without_prune_is_refused(runs: Callable[..., Any]) -> None:
    assert runs("--keep", "1").errors == ["error: --keep and --yes belong to --prune"]
