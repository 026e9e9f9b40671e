"""Settings as earlier versions wrote them, so that their recipes can be read and their unfinished runs resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo_cli.errors import ConfigError

# By command, today's name of a setting and the one before it.
_BEFORE = {
    "kd": {"eval_data": "eval_questions"},
    "rl": {"eval_data": "validation", "eval_limit": "eval_questions"},
}
# Settings that were added after the first runs, each with the value under which a run computes the same as before.
_WHOLE = {"lora": {"rank": None, "alpha": None, "target_modules": None}, "freeze_embeddings": False}
_ADDED: dict[str, dict[str, Any]] = {
    "kd": _WHOLE,
    "rl": {"epochs": 1} | _WHOLE,
    "distill-data": {"format": None, "bench_dir": None},
    "eval": {"format": None, "stop_repeats": True, "model_url": None, "model_name": None},
}
# Settings that were added later and do not affect what a run computes.
_UNDECIDING = {"kd": ("save_every",), "rl": (), "eval": ("server",)}


def as_today(command: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a command under today's names. Raises ConfigError for one that is given under both."""
    result = dict(table)
    for today, before in _BEFORE.get(command, {}).items():
        if before not in table:
            continue
        if today in table:
            raise ConfigError(
                f"{before} is an earlier name of {today}, and both are given to {command}", hint=f"leave out {before}"
            )
        result[today] = result.pop(before)
    return result


def as_first_written(command: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved settings of a run as the first version recorded them, which its digest is computed from."""
    before, added = _BEFORE.get(command, {}), _ADDED.get(command, {})
    return {
        before.get(name, name): value
        for name, value in config.items()
        if name not in _UNDECIDING.get(command, ()) and (name not in added or value != added[name])
    }


def deciding(command: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that affect what it computes, under today's names."""
    known = _ADDED.get(command, {}) | as_today(command, config)
    return {name: value for name, value in known.items() if name not in _UNDECIDING.get(command, ())}
