"""`dgpo runs`: what was run in this folder, and cleaning up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.shared import JsonFlag, QuietFlag
from dgpo_cli.console import Console
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.core.run_list import Removal, RunSummary


def runs(
    root: Annotated[Path, typer.Option(help="Folder with the runs.")] = Path("runs"),
    prune: Annotated[bool, typer.Option("--prune", help="Show what can go, ask, and remove it.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="With --prune: remove finished runs whole, except the N newest of each command."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --prune: do not ask.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """List the runs of this folder, with status, steps, best score and size; clean up with --prune.

    Pruning removes the resumable state of finished runs, which nothing needs any more; best weights, metrics and
    records stay. With --keep N it also removes old finished runs, except those that this folder's commands take by
    default. An unfinished run is never touched: repeat its command and it goes on.

    Examples: `dgpo runs` · `dgpo runs --prune` · `dgpo runs --prune --keep 3 --yes`
    """
    from dgpo_cli.core.run_list import plan_prune, remove, summarize_runs

    console = Console(json_output=json, quiet=quiet)
    if not prune:
        if keep is not None or yes:
            raise ConfigError("--keep and --yes belong to --prune", hint="dgpo runs --prune --keep 3")
        summaries = summarize_runs(root)
        _show(console, root, summaries)
        console.result({"runs": [_plain(summary) for summary in summaries]})
        return
    removals = plan_prune(root, keep=keep, protected=_in_use())
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


def _show(console: Console, root: Path, summaries: list[RunSummary]) -> None:
    if not summaries:
        console.print(f"no runs under {root}; `dgpo quickstart` makes some")
        return
    rows = [
        [str(s.path), s.status, s.created[:16].replace("T", " "), s.steps, s.best_em, f"{s.num_bytes / 1e6:,.1f} MB"]
        for s in summaries
    ]
    console.table("", ["run", "status", "started (UTC)", "steps", "best EM", "size"], rows)
    for summary in summaries:
        if summary.problem is not None:
            console.warn(summary.problem)


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


def _plain(summary: RunSummary) -> dict[str, Any]:
    return asdict(summary) | {"path": str(summary.path)}
