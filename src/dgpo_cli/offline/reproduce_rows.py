"""The rows of the paper's table on the offline world: what each trains, and from what it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpo_cli.core.recipes import shipped
from dgpo_cli.errors import ConfigError

BASE_ROWS = ("student", "teacher")
_ROW_KEYS = ("label", "published", "command", "start", "as_long_as", "tune")


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One row of the recipe. `settings` are those of its command; `as_long_as` names the row whose time it gets.

    `tune` is the setting of the objective that the search varies in addition to the learning rate, with its other
    values.
    """

    name: str
    label: str
    command: str
    start: str
    published: float | None
    as_long_as: str | None
    tune: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any]


def recipe(scale: str, teacher: str = "fair") -> dict[str, Any]:
    """Settings with the `faults` of that teacher. Raises ConfigError for a scale without a recipe, or a teacher."""
    if scale != "tiny":
        raise ConfigError(
            f"there is no recipe for --scale {scale}",
            hint="tiny is; the paper's own sizes are single commands (`dgpo kd --list`, `dgpo rl --list`)",
        )
    settings = shipped(f"reproduce-{scale}")
    teachers = settings.pop("teachers")
    if teacher not in teachers:
        raise ConfigError(f"no teacher is called {teacher}", hint=f"teachers: {', '.join(teachers)}")
    return settings | {"faults": teachers[teacher]}


def row_specs(settings: Mapping[str, Any]) -> dict[str, RowSpec]:
    """The recipe's rows, each after what it starts from. Raises ConfigError for one that starts from nothing."""
    specs: dict[str, RowSpec] = {}
    waiting = dict(settings["rows"])
    while waiting:
        ready = [n for n, row in waiting.items() if {row.get("start", "student"), row.get("as_long_as")} <= {
            *BASE_ROWS, *specs, None}]  # fmt: skip
        if not ready:
            raise ConfigError(f"rows {', '.join(waiting)} start from rows that do not exist", hint="see the recipe")
        for name in ready:
            row = waiting.pop(name)
            own = {key: value for key, value in row.items() if key not in _ROW_KEYS}
            specs[name] = RowSpec(
                name=name,
                label=row["label"],
                command=row["command"],
                start=row.get("start", "student"),
                published=row.get("published"),
                as_long_as=row.get("as_long_as"),
                tune=row.get("tune", {}),
                settings=settings[row["command"]] | own,
            )
    return specs


def choose(specs: Mapping[str, RowSpec], names: Sequence[str] | None) -> list[str]:
    """The rows asked for, in the recipe's order; all of them by default. Raises ConfigError for an unknown one."""
    if names is None:
        return list(specs)
    unknown = sorted(set(names) - {*specs, *BASE_ROWS})
    if unknown:
        raise ConfigError(f"no row is called {', '.join(unknown)}", hint=f"rows: {', '.join(specs)}")
    return [name for name in specs if name in names]
