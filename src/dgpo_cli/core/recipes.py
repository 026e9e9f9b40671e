"""Recipes: TOML files with one table per command, shipped with the package or written by the user.

`[recipe]` says what it is (title, card, and `base`: another recipe whose tables it changes); the tables `distill-data`,
`kd` and `rl` hold settings of those commands.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.config import load_toml
from dgpo_cli.core.run_config import CONFIG_FILE
from dgpo_cli.core.run_names import find_run
from dgpo_cli.core.run_record import require_command
from dgpo_cli.core.setting_names import as_today
from dgpo_cli.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "recipes"
STAGES = ("distill-data", "kd", "rl")
_OTHER = ("quickstart", "quickstart-real", "reproduce-tiny", "learn")  # settings of commands of their own
_ABOUT = schema.record(
    {}, {"title": schema.text(), "card": schema.text(), "base": schema.text(empty=False)}, other=None
)
_log = logging.getLogger(__name__)
_STAGE = schema.map_of(schema.ANYTHING)
_RECIPE = schema.record({}, {"recipe": _ABOUT} | dict.fromkeys(STAGES, _STAGE))


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    title: str
    card: str  # what it is meant for
    note: str  # the comment at the head of its file
    stages: dict[str, dict[str, Any]]


def names() -> list[str]:
    """Of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem not in _OTHER)


def shipped(name: str) -> dict[str, Any]:
    """Settings of a command that has a recipe of its own: quickstart, reproduce-tiny."""
    return load_toml(FOLDER / f"{name}.toml")


def load(name: str, *, above: tuple[Path, ...] = ()) -> Recipe:
    """A recipe file, else a shipped recipe. Raises ConfigError that lists the nearest names.

    `above` are the files whose base it is.
    """
    path = _path(name)
    if path.resolve() in above:
        raise ConfigError(f"{path}: its base comes back to itself", hint="leave `base` out of one of them")
    table = load_toml(path)
    hint = "a recipe has a table [recipe] of texts, and one for each command"
    schema.check(table, _RECIPE, str(path), hint=hint, error=ConfigError)
    about = table.get("recipe", {})
    if unknown := set(table) - {"recipe", *STAGES}:
        raise ConfigError(f"{path}: unknown table {sorted(unknown)[0]!r}", hint=f"use recipe, {', '.join(STAGES)}")
    stages = {stage: as_today(stage, table[stage]) for stage in STAGES if stage in table}
    if "base" in about:
        base = load(about["base"], above=(*above, path.resolve()))
        stages = {s: merged(base.stages.get(s, {}), stages.get(s, {})) for s in STAGES if s in {*base.stages, *stages}}
    if not stages:
        raise ConfigError(f"{path} is no recipe: it has none of the tables {', '.join(STAGES)}", hint="add one")
    return Recipe(path.stem, about.get("title", ""), about.get("card", ""), _header(path), stages)


def config_of(given: Path | None, command: str, method: object = None, default: object = None) -> dict[str, Any]:
    """What `--config` means to a command: a run's config.toml as it is, or the command's table of a recipe.

    Where a `method` was chosen that is not its own, its settings of the objective are left out with a warning. One that
    names no method is meant for the command's `default`.
    """
    if given is None:
        return {}
    table = _table_of(given, command)
    own = table.get("method", default or method)
    if "objective" in table and method is not None and own != method:
        _log.warning("%s: its settings of the objective are those of %s, and left out for %s", given, own, method)
        del table["objective"]
    return table


def _table_of(given: Path, command: str) -> dict[str, Any]:
    run = None if given.is_file() or str(given) in names() else find_run(given)
    path = _path(str(given)) if run is None else run / CONFIG_FILE
    if path.name == CONFIG_FILE and (path.parent / "run.json").is_file():
        hint = f"give a run of `dgpo {command}` (`dgpo runs` lists them), or a recipe"
        require_command(path.parent, command, hint=hint)
    table = load_toml(path)
    if path.parent != FOLDER and not {"recipe", *STAGES} & {k for k, v in table.items() if isinstance(v, dict)}:
        return as_today(command, table)
    recipe = load(str(given))
    if command not in recipe.stages:
        raise ConfigError(f"recipe {recipe.name} has no [{command}]", hint=f"it has {', '.join(recipe.stages)}")
    return recipe.stages[command]


def merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `below`, table by table."""
    result = dict(below)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def text(name: str) -> str:
    """The file as it is."""
    return _path(name).read_text(encoding="utf-8")


def _path(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name in names():
        return FOLDER / f"{name}.toml"
    near = difflib.get_close_matches(name, names(), n=3)
    raise ConfigError(
        f"{name!r} is neither a file nor a recipe",
        hint=f"did you mean {' or '.join(near)}?" if near else "`dgpo recipes` lists them",
    )


def _header(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
