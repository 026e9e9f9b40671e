"""Settings that have a flag of their own and a name under -o: given by both, they have to be the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo_cli.core.config import flat, parse_options
from dgpo_cli.core.setting_names import as_today
from dgpo_cli.errors import ConfigError

# By command, names under -o of parameters that are called otherwise there.
_ASKED: dict[str, tuple[str, ...]] = {"top_k": ("rollout.top_k",), "max_searches": ("rollout.max_turns",)}
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "kd": {"data": ("trajectories",)},
    "rl": {
        "data": ("questions",),
        **{name: (f"objective.{name}",) for name in ("kl_form", "kl_coef", "kl_gate")},
    },
    "distill-data": {
        "data": ("questions",),
        "temperature": ("rollout.temperature",),
        "teacher_name": ("teacher",),
        "format_": ("format",),
    },
    "make-questions": {"teacher_name": ("teacher",), "documents": ("index",)},
    "eval": _ASKED,
    "chat": _ASKED,
    "index": {"encoder": ("encoder", "dense.encoder")},
    "mcp": {"top_k": ()},  # of the tool `search`; rollout.top_k is of `ask`
}


def refuse_two_values(command: str, flags: Mapping[str, tuple[str, Any]], options: Sequence[str]) -> None:
    """`flags` are the parameters that were given: by name, what the user wrote, as --lr, and its value.

    Raises ConfigError where -o gives one of them another value.
    """
    said = flat(as_today(command, parse_options(options)))
    for parameter, (flag, value) in flags.items():
        for name in _NAMES.get(command, {}).get(parameter, (parameter,)):
            if name in said and not _same(said[name], value):
                raise ConfigError(f"{flag} {value} and -o {name}={said[name]} are two values of one", hint="give one")


def _same(said: str, value: Any) -> bool:
    if isinstance(value, bool):
        return said.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(said) == value
        except ValueError:
            return False
    return said == str(value) or Path(said).resolve() == Path(value).resolve()
