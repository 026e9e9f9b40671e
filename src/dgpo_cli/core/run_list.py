"""A summary of the runs in a folder, and which of their files can be deleted."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgpo_cli.core import folders
from dgpo_cli.core.locks import Lock
from dgpo_cli.core.run_config import read_config
from dgpo_cli.core.run_dir import is_locked, list_runs
from dgpo_cli.core.run_metrics import measured, read_metrics
from dgpo_cli.core.run_names import find_runs, short_names
from dgpo_cli.core.run_record import read_run
from dgpo_cli.errors import ConfigError, InputError

ROLLOUTS_FILE, ROLLOUTS = "rollouts.jsonl", "rollouts"  # episodes of rl's steps, and the schema of their records
VALIDATION_FILE = "validation.jsonl"  # episodes of a training run's last periodic evaluation

Status = Literal["running", "unfinished", "finished", "damaged"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    path: Path
    name: str  # by which commands know it
    status: Status
    command: str
    method: str | None  # of kd and rl
    model: str | None  # that was trained, measured or asked
    created: str
    steps: int | None
    em: float | None  # what was measured: by eval and distill-data, else the best of the periodic evaluations
    num_bytes: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    path: Path
    num_bytes: int
    reason: str


def summarize_runs(root: Path) -> list[RunSummary]:
    """All runs below `root`, oldest first; damaged ones at the end, with their problem."""
    summaries: list[RunSummary] = []
    damaged: list[RunSummary] = []
    paths = find_runs(root)
    for path, name in zip(paths, short_names(paths), strict=True):
        try:
            summaries.append(_summarize(path, name))
        except (InputError, ConfigError) as error:
            size = folder_bytes(path)
            damaged.append(RunSummary(path, name, "damaged", "", None, None, "", None, None, size, error.message))
    return sorted(summaries, key=lambda s: (s.created, s.path.name)) + damaged


def _summarize(path: Path, name: str) -> RunSummary:
    record, rows = read_run(path), read_metrics(path)
    config = read_config(path)
    scores = [em for row in rows if (em := measured(row, "eval_em")) is not None]
    em = measured(record.get("result", {}), "em")
    command = record["command"]
    role = {"distill-data": "teacher", "eval": "model"}.get(command, "student")
    return RunSummary(
        path=path,
        name=name,
        status=status_of(path, record),
        command=command,
        method=config.get("method"),
        model=None if config.get(role) is None else spoken_model(str(config[role])),
        created=record["created"],
        steps=max((int(row["step"]) for row in rows if "step" in row), default=None),
        em=max(scores, default=None) if em is None else em,
        num_bytes=folder_bytes(path),
    )


def status_of(path: Path, record: Mapping[str, Any]) -> Status:
    """A run is running while a process works in its folder, whatever the record says."""
    if is_locked(path):
        return "running"
    return "finished" if record["status"] == "finished" else "unfinished"


def spoken_model(name: str) -> str:
    """A model's name for lists and cards: of a folder the last part that identifies it, of a hub id all of it."""
    path = Path(name)
    if not path.is_absolute() and not name.startswith((".", "~")) and not path.exists():
        return name
    return path.parent.name if path.name == "best" else path.name


def folder_bytes(path: Path) -> int:
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


def plan_prune(root: Path, *, keep: int | None = None, protected: Collection[Path] = ()) -> list[Removal]:
    """List what pruning would remove, without removing it.

    The resumable state of every finished run goes: its best weights, metrics and records stay. With `keep`, finished
    runs go whole, except the `keep` newest of each command and the `protected` ones. A run that is not finished or
    that a process works in always stays.
    """
    finished = [p for p in list_runs(root) if read_run(p)["status"] == "finished" and not is_locked(p)]
    begun = [*root.glob(".*.removed"), *root.glob("[!.]*/.state.removed")]
    left = [Removal(path, folder_bytes(path), "left of a removal that was killed") for path in begun]
    return left + list(_removals(finished, keep, {p.resolve() for p in protected}))


def _removals(finished: list[Path], keep: int | None, protected: set[Path]) -> Iterator[Removal]:
    newer: dict[str, int] = {}
    for path in reversed(finished):
        command = read_run(path)["command"]
        newer[command] = newer.get(command, 0) + 1
        if keep is not None and newer[command] > keep and path.resolve() not in protected:
            yield Removal(path, folder_bytes(path), f"finished, older than the {keep} newest of {command}")
        elif (path / "state").is_dir():
            yield Removal(path / "state", folder_bytes(path / "state"), "resumable state of a finished run")


def remove(removals: Collection[Removal]) -> int:
    """Remove what `plan_prune` listed; returns the number of bytes that this freed."""
    for removal in removals:
        if removal.path.name.startswith("."):
            shutil.rmtree(removal.path)
            continue
        run = removal.path.parent if removal.path.name == "state" else removal.path
        with Lock.inside(run):
            folders.remove(removal.path)
    return sum(removal.num_bytes for removal in removals)
