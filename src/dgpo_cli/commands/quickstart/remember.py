"""Defaults for the commands after `dgpo quickstart`."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.commands.common.options import absolute
from dgpo_cli.core.workspace import Workspace


def remember(
    by: str, out: Path, *, trajectories: str, teacher: str, student: str, model: str, bench: str | None = None
) -> None:
    """Of the quickstart in `out`: a run of trajectories by its name, models by their places.

    Without `bench`, no file of its test questions has the form of a set, and what was asked before is forgotten.
    """
    world = out / "world"
    Workspace().remember(
        by=by,
        index=absolute(str(out / "index")),
        questions=absolute(str(world / "train.jsonl")),
        trajectories=absolute(str(out / "runs" / trajectories)),
        teacher=teacher,
        student=student,
        model=model,
        last_run=model,
        bench=bench,
        bench_dir=None if bench is None else absolute(str(world)),
    )
