"""What `dgpo runs` lists and what pruning takes away."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

from dgpo_cli.commands import runs as runs_command
from dgpo_cli.console import Console
from dgpo_cli.core import run_names
from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.core.run_list import plan_prune, remove, summarize_runs
from dgpo_cli.core.run_names import find_run, find_runs, short_names
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.errors import ConfigError


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
    assert (first.name, first.status, first.command, first.steps, first.em) == (
        "kd-0001", "finished", "kd", 4, 0.25,
    )  # fmt: skip
    assert first.num_bytes == sum(p.stat().st_size for p in first.path.rglob("*") if p.is_file())
    assert (second.status, third.status, third.steps, third.em) == ("unfinished", "running", None, None)
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
    assert "no runs below this folder" in runs().out
    make("kd", 1)
    listed = runs()
    assert "kd-0001" in listed.out
    assert "25.0 %" in listed.out
    assert json.loads(runs("--json").out)["runs"][0]["em"] == 0.25


def stage(path: str, command: str, config: dict[str, Any], result: dict[str, Any], *steps: dict[str, Any]) -> Path:
    """A run under a name, as `dgpo quickstart` makes them."""
    with RunDir.open(command, config, out=Path(path)) as run:
        for step, metrics in enumerate(steps, start=1):
            run.log(step, metrics)
        run.finish(result)
    return run.path


def quickstart() -> None:
    runs = "quickstart/runs"
    stage(f"{runs}/distill-data", "distill-data", {"teacher": str(Path(runs, "teacher").resolve())}, {"em": 0.75})
    stage(f"{runs}/kd", "kd", {"method": "kd", "student": "Qwen/Qwen2.5-0.5B-Instruct"}, {}, {"eval_em": 0.31})
    stage(f"{runs}/dgpo", "rl", {"method": "dgpo", "student": str(Path(runs, "kd", "best").resolve())}, {})
    stage(f"{runs}/eval-kd_longer", "eval", {"model": str(Path(runs, "kd_longer").resolve())}, {"em": 0.513})
    stage(f"{runs}/search/ppo-lr0.0005", "rl", {"method": "ppo", "student": "x"}, {})


def test_the_runs_of_the_quickstart_are_listed_with_what_they_are(runs: Callable[..., Any]) -> None:
    quickstart()
    Path(".hidden/runs/old").mkdir(parents=True)
    Path(".hidden/runs/old/run.json").write_text("{}")
    listed = {row["name"]: row for row in json.loads(runs("--json").out)["runs"]}
    assert {name: (row["method"], row["model"], row["em"], row["steps"]) for name, row in listed.items()} == {
        "distill-data": (None, "teacher", 0.75, None),
        "kd": ("kd", "Qwen/Qwen2.5-0.5B-Instruct", 0.31, 1),
        "dgpo": ("dgpo", "kd", None, None),
        "eval-kd_longer": (None, "kd_longer", 0.513, None),
        "ppo-lr0.0005": ("ppo", "x", None, None),
    }
    assert listed["dgpo"]["path"] == "quickstart/runs/dgpo"


def test_the_list_fits_eighty_columns_with_whole_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart()
    stage("runs/" + "long-" * 12 + "end", "eval", {"model": "m"}, {"em": 0.5})
    console, shown = Console(), io.StringIO()
    monkeypatch.setattr(console, "_out", rich.console.Console(file=shown, width=80, highlight=False))
    runs_command._show(console, None, summarize_runs(Path()))
    lines = [line for line in shown.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["run", "method", "model", "EM", "steps", "status", "age"]
    assert len(lines) == 2 + 6, "one line a run"
    row = next(line for line in lines if "eval-kd_longer" in line)
    assert row.split()[:5] == ["eval-kd_longer", "eval", "kd_longer", "51.3", "%"]
    assert any(line.split()[0].startswith("long-") and line.split()[0].endswith("-end") for line in lines[2:])


def test_a_run_is_known_by_the_end_of_its_path(folder: Path) -> None:
    quickstart()
    inner = Path("quickstart/runs")
    assert find_run("dgpo") == find_run("quickstart/dgpo") == find_run("quickstart/runs/dgpo") == inner / "dgpo"
    assert find_run("ppo-lr0.0005") == find_run("search/ppo-lr0.0005") == inner / "search/ppo-lr0.0005"
    assert find_run("nonesuch") is find_run("runs") is find_run("/runs/dgpo") is find_run("../quickstart") is None
    stage("runs/kd", "kd", {}, {})
    assert find_run("kd") == Path("runs/kd"), "this folder's runs come first"
    stage("other/runs/dgpo", "rl", {}, {})
    with pytest.raises(ConfigError, match="several runs are called dgpo") as caught:
        find_run("dgpo")
    assert caught.value.hint == "write one of: other/runs/dgpo, quickstart/runs/dgpo"
    assert find_run("other/dgpo") == Path("other/runs/dgpo")
    assert short_names(find_runs()) == [
        "other/dgpo", "quickstart/dgpo", "distill-data", "eval-kd_longer", "quickstart/kd", "ppo-lr0.0005", "kd",
    ]  # fmt: skip


def test_a_name_is_never_blank_and_never_an_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert short_names([Path(), Path("runs"), Path("runs/-a"), Path("b")]) == [".", "runs", "./-a", "b"]
    with RunDir.open("eval", {}, out=Path("runs/-a")) as run:
        run.finish({})
    assert find_run("./-a") == Path("runs/-a")
    monkeypatch.chdir(folder / "runs" / "-a")
    (found,) = summarize_runs(Path())
    assert (found.name, find_run(found.name)) == (".", Path())


def test_every_listed_name_is_the_run_that_it_names(folder: Path) -> None:
    quickstart()
    stage("runs/kd", "kd", {}, {})
    stage("other/runs/dgpo", "rl", {}, {})
    paths = find_runs()
    assert [find_run(name) for name in short_names(paths)] == paths


def test_runs_behind_links_are_found_once_and_by_their_own_name(tmp_path: Path, folder: Path) -> None:
    """As where they were moved to a larger disk, one by one or all of them."""
    store = tmp_path.parent / f"{tmp_path.name}-store"
    make("kd", 1).parent.rename(store)
    Path("runs").symlink_to(store)
    Path("latest").symlink_to("runs/kd-0001")
    assert find_runs() == [Path("runs/kd-0001")] and summarize_runs(Path())[0].name == "kd-0001"
    Path("runs").unlink()
    Path("runs").mkdir()
    make("rl", 2)
    for name, target in (("kd-0001", store / "kd-0001"), ("gone", "nowhere"), ("loop", "loop"), ("runs", ".")):
        (Path("runs") / name).symlink_to(target)
    assert find_runs() == [Path("runs/kd-0001"), Path("runs/rl-0001")]
    Path("data").symlink_to(store)
    assert len(find_runs()) == 2, "other links are not looked into"
    assert find_run("kd-0001") == Path("runs/kd-0001")


def test_a_wide_folder_is_left_after_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(30):
        Path(f"d{place:02d}/deep").mkdir(parents=True)
    quickstart()
    monkeypatch.setattr(run_names, "_MOST_FOLDERS", 20)
    assert find_runs() == []
    monkeypatch.setattr(run_names, "_MOST_FOLDERS", 100)
    assert len(find_runs()) == 5


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
