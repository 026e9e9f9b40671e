"""`dgpo runs`: what was run in this folder, and cleaning up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag
from dgpo_cli.console import Console
from dgpo_cli.core.figures import age, percent, shortened
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.core.run_list import Removal, RunSummary


def runs(
    root: Annotated[
        Path | None, typer.Option(help="Folder to look in; this one, and for --prune its runs/, by default.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Show what can go, ask, and remove it.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="With --prune: remove finished runs whole, except the N newest of each command."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --prune: do not ask.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """List the runs below this folder, those of `dgpo quickstart` and `dgpo reproduce` too; clean up with --prune.

    A name of the list works wherever a run or a model is asked for. EM is what an evaluation measured, of a training
    run the best of its validations.

    Pruning removes the resumable state of finished runs, which nothing needs any more; best weights, metrics and
    records stay. With --keep N it also removes old finished runs, except those that this folder's commands take by
    default. An unfinished run is never touched: repeat its command and it goes on.

    Examples: `dgpo runs` · `dgpo runs --prune` · `dgpo runs --prune --keep 3 --yes`
    """
    from dgpo_cli.core.run_list import plan_prune, remove, summarize_runs

    console = Console(json_output=json, quiet=quiet)
    if root is not None and not root.is_dir():
        raise ConfigError(f"{root} is no folder", hint="give --root a folder with runs below it")
    os.scandir(root or ".").close()  # Raises OSError where one may not read: that says nothing about runs
    if not prune:
        if keep is not None or yes:
            raise ConfigError("--keep and --yes belong to --prune", hint="dgpo runs --prune --keep 3")
        summaries = summarize_runs(root or Path())
        _show(console, root, summaries)
        console.result({"runs": summaries})
        return
    removals = plan_prune(root or Path("runs"), keep=keep, protected=_in_use())
    _show_removals(console, removals)
    confirmed = bool(removals) and (yes or _confirm(console))
    freed = remove(removals) if confirmed else 0
    if confirmed:
        console.print(f"freed {freed / 1e6:,.1f} MB")
    removed = [str(removal.path) for removal in removals] if confirmed else []
    console.result({"planned": [str(removal.path) for removal in removals], "removed": removed, "bytes": freed})


def _in_use() -> list[Path]:
    """Runs that the next command in this folder would take by default."""
    from dgpo_cli.core.workspace import KEYS, Workspace

    workspace = Workspace()
    values = (workspace.resolve(key, None).value for key in KEYS)
    paths = [Path(value) for value in values if value is not None]
    return [place for path in paths if path.exists() for place in (path, *path.resolve().parents)]


COLUMNS = ("run", "method", "model", "EM", "steps", "status", "age", "size")
_FRAME = 2  # characters around each column
_MODEL = 12  # of a model's name, at least


def _show(console: Console, root: Path | None, summaries: list[RunSummary]) -> None:
    if not summaries:
        console.print(f"no runs below {root or 'this folder'}; `dgpo quickstart` makes some")
        return
    console.table("", *_fitting([_row(summary) for summary in summaries], console.width))
    for summary in summaries:
        if summary.problem is not None:
            console.warn(summary.problem)


def _row(summary: RunSummary) -> list[str]:
    return [
        summary.name,
        summary.method or {"distill-data": "teacher"}.get(summary.command, summary.command),
        summary.model or "-",
        percent(summary.em),
        "-" if summary.steps is None else f"{summary.steps:,}",
        summary.status,
        age(summary.created),
        f"{summary.num_bytes / 1e6:,.1f} MB",
    ]


def _fitting(rows: list[list[str]], room: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows that fit into `room`: sizes go first, then the middle of long names."""
    widths = [max(len(line[place]) for line in [list(COLUMNS), *rows]) + _FRAME for place in range(len(COLUMNS))]
    shown = len(COLUMNS) if sum(widths) < room else len(COLUMNS) - 1
    left = room - 1 - sum(widths[place] for place in range(1, shown) if place != 2)
    name = max(_MODEL, min(widths[0], left - min(widths[2], _MODEL + _FRAME)) - _FRAME)
    model = max(_MODEL, left - name - 2 * _FRAME)
    for row in rows:
        row[0], row[2] = shortened(row[0], name), shortened(row[2], model)
    return list(COLUMNS[:shown]), [row[:shown] for row in rows]


def _show_removals(console: Console, removals: list[Removal]) -> None:
    if not removals:
        console.print("nothing to remove")
        return
    rows = [[str(r.path), f"{r.num_bytes / 1e6:,.1f} MB", r.reason] for r in removals]
    console.table("to remove", ["what", "size", "why"], rows)


def _confirm(console: Console) -> bool:
    if not console.interactive or console.json_output:
        raise ConfigError("nobody is there to confirm", hint="add --yes to remove what is listed")
    return console.ask("remove these? [y/N] ").strip().lower() in ("y", "yes")
