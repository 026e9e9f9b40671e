"""What the runs of a folder hold, and what of it can go."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgpo_cli.core.run_dir import is_locked, list_runs, read_metrics, read_run
from dgpo_cli.errors import InputError

Status = Literal["running", "unfinished", "finished", "damaged"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    path: Path
    status: Status
    command: str
    created: str
    steps: int | None
    best_em: float | None  # the best of the periodic evaluations
    num_bytes: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    path: Path
    num_bytes: int
    reason: str


def summarize_runs(root: Path) -> list[RunSummary]:
    """All runs under `root`, oldest first; damaged ones at the end, with their problem."""
    summaries: list[RunSummary] = []
    damaged: list[RunSummary] = []
    for path in sorted(p.parent for p in root.glob("*/run.json")):
        try:
            summaries.append(_summarize(path))
        except InputError as error:
            damaged.append(RunSummary(path, "damaged", "", "", None, None, folder_bytes(path), error.message))
    return sorted(summaries, key=lambda s: (s.created, s.path.name)) + damaged


def _summarize(path: Path) -> RunSummary:
    record, rows = read_run(path), read_metrics(path)
    scores = [row["eval_em"] for row in rows if isinstance(row.get("eval_em"), int | float)]
    status: Status = "finished" if record["status"] == "finished" else "unfinished"
    return RunSummary(
        path=path,
        status="running" if is_locked(path) else status,
        command=record["command"],
        created=record["created"],
        steps=max((int(row["step"]) for row in rows if "step" in row), default=None),
        best_em=max(scores, default=None),
        num_bytes=folder_bytes(path),
    )


def folder_bytes(path: Path) -> int:
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


def plan_prune(root: Path, *, keep: int | None = None, protected: Collection[Path] = ()) -> list[Removal]:
    """What pruning would remove, nothing of it removed yet.

    The resumable state of every finished run goes: its best weights, metrics and records stay. With `keep`, finished
    runs go whole, except the `keep` newest of each command and the `protected` ones. A run that is not finished or
    that a process works in always stays.
    """
    finished = [p for p in list_runs(root) if read_run(p)["status"] == "finished" and not is_locked(p)]
    return list(_removals(finished, keep, {p.resolve() for p in protected}))


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
    """Remove what `plan_prune` listed; the number of bytes that are free now."""
    for removal in removals:
        shutil.rmtree(removal.path)
    return sum(removal.num_bytes for removal in removals)
