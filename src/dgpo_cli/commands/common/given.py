"""Settings of a run that the user chose, by --config, -o and flags; those are never fitted to the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.config import apply_options, flat, parse_options
from dgpo_cli.core.recipes import config_of, merged
from dgpo_cli.core.setting_names import as_today
from dgpo_cli.errors import ConfigError

# What commands look at before all settings are converted.
_PLACES = (
    "student",
    "teacher",
    "index",
    "questions",
    "bench_dir",
    "trajectories",
    "demonstrations",
    "teacher_url",
    "tokenizer",
)
_TABLES = ("rollout", "server")
_SAID = schema.record(
    {}, dict.fromkeys(_PLACES, schema.text(empty=False)) | dict.fromkeys(_TABLES, schema.map_of(schema.ANYTHING))
)


def recorded(
    config: Path | None,
    options: Sequence[str] | None,
    command: str,
    method: object = None,
    default: object = None,
) -> dict[str, Any]:
    """What --config, a run's or a recipe's, and -o say to a command, the latter winning. Raises ConfigError.

    `method` is the chosen one, `default` the command's; see `config_of`.
    """
    said = merged(config_of(config, command, method, default), as_today(command, parse_options(options or ())))
    place = "-o" if config is None else f"--config {config} and -o" if options else f"--config {config}"
    schema.check(said, _SAID, place, hint=f"`dgpo {command} --help` shows what is what", error=ConfigError)
    return said


def settings_from(
    kind: Callable[..., Any],
    command: str,
    *,
    config: Path | None,
    options: Sequence[str] | None,
    values: Mapping[str, Any],
) -> Any:
    """Settings of `kind`: --config, then -o, then flags that are not None. Raises ConfigError for an unknown one."""
    assert isinstance(kind, type) and is_dataclass(kind)
    given = {name: value for name, value in values.items() if value is not None}
    method = given.get("method", parse_options(options or ()).get("method"))
    default = next((field.default for field in fields(kind) if field.name == "method"), None)
    chosen = merged(recorded(config, options, command, method, default), given)
    try:
        return apply_options(kind, chosen)
    except ConfigError as error:
        raise ConfigError(error.message.replace(kind.__qualname__, f"`dgpo {command}`"), error.hint) from error


def given_names(
    config: Path | None, options: Sequence[str] | None, command: str, kind: Callable[..., Any]
) -> frozenset[str]:
    """Settings that the user named, as -o names them: all of -o, and those of --config that are not the default.

    An earlier run's config.toml holds every setting, of which most were nobody's choice.
    """
    named = flat(as_today(command, parse_options(options or ())))
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name, value in flat(config_of(config, command)).items():
        first, _, rest = name.partition(".")
        if first not in known:
            continue
        field = known[first]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != (getattr(default, rest, None) if rest else default):
            named[name] = value
    return frozenset(named)


def said_names(options: Sequence[str] | None, command: str, flags: Mapping[str, Any]) -> frozenset[str]:
    """Settings that -o or one of `flags` (None where it was not given) names, as -o names them."""
    given = (name for name, value in flags.items() if value is not None)
    return frozenset(flat(as_today(command, parse_options(options or ())))) | frozenset(given)
