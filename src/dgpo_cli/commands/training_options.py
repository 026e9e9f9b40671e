"""What `kd` and `rl` share beyond `shared`: the list of methods, and what is said when a run is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.shared import absolute
from dgpo_cli.console import Console

if TYPE_CHECKING:
    from dgpo_cli.core.run_dir import RunDir

KeepOption = Annotated[int, typer.Option(min=1, help="How many resumable states to keep.")]
FitFlag = Annotated[
    bool | None, typer.Option("--fit", help="First find the largest micro-batch (rl: and wave) that memory allows.")
]
ListFlag = Annotated[bool, typer.Option("--list", help="List the methods, then stop.")]


def describe_methods(console: Console, name: str | None, *, rewards: bool) -> dict[str, Any]:
    """The methods of a command, or the settings of one with default and source."""
    from dgpo_cli.core import registry as names
    from dgpo_cli.core.config import describe
    from dgpo_cli.objectives.base import Need
    from dgpo_cli.objectives.registry import OBJECTIVES, create

    if name is None:
        chosen = [known for known in OBJECTIVES if (Need.REWARD in create(known, {}).needs) == rewards]
        console.table("", ["method"], [[known] for known in chosen])
        return {"methods": chosen}
    notes = describe(names.load(OBJECTIVES, name, "method").Config)
    console.table(
        f"-o objective.NAME=VALUE for method {name}",
        ["name", "type", "default", "source", "what"],
        [[note.name, note.type, str(note.default), note.source, note.help] for note in notes],
    )
    return {"method": name, "options": {note.name: note.default for note in notes}}


def follow(
    console: Console, command: str, run: RunDir, result: dict[str, Any], *, after: str, student: bool = False
) -> None:
    """Remember what was made and say what comes next."""
    from dgpo_cli.core.workspace import Workspace

    path = absolute(str(run.path))
    Workspace().remember(by=f"dgpo {command}", model=path, last_run=path, **({"student": path} if student else {}))
    best = "" if result.get("best") is None else f", best validation score {result['best']:.4f}"
    console.print(f"{run.path}: {result['steps']} steps in {result['seconds']:.0f} s{best}\nnext: {after}")
    console.result(result | {"run": str(run.path)})
