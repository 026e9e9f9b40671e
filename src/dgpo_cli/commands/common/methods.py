"""The methods of `kd` and `rl` by name."""

from __future__ import annotations

from typing import Any

from dgpo_cli.console import Console


def describe_methods(console: Console, name: str | None, *, rewards: bool) -> dict[str, Any]:
    """The methods of a command, or the settings of one with default and source."""
    from dgpo_cli.core.config import describe
    from dgpo_cli.objectives.base import Need
    from dgpo_cli.objectives.registry import OBJECTIVES, create, objective_class

    if name is None:
        chosen = [known for known in OBJECTIVES if (Need.REWARD in create(known, {}).needs) == rewards]
        console.table("", ["method"], [[known] for known in chosen])
        return {"methods": chosen}
    notes = describe(objective_class(name).Config)
    console.table(
        f"-o objective.NAME=VALUE for method {name}",
        ["name", "type", "default", "source", "what"],
        [[note.name, note.type, str(note.default), note.source, note.help] for note in notes],
    )
    return {"method": name, "options": {note.name: note.default for note in notes}}


def require_method(given: str | None) -> None:
    """Before anything is asked that only some methods need. Raises ConfigError for an unknown one."""
    from dgpo_cli.objectives.registry import objective_class

    if given is not None:
        objective_class(given)
