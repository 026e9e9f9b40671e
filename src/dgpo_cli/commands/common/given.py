"""Settings of a run that the user chose, which are never fitted to the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from dgpo_cli.core.config import flat, parse_options
from dgpo_cli.core.recipes import config_of
from dgpo_cli.core.setting_names import as_today


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
