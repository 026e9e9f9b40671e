"""Which runs do the same work: a digest of their settings and of what is in the places that these name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dgpo_cli.core.setting_names import as_first_written


@dataclass(frozen=True)
class Work:
    """The work of a run: a command, its config, and the digests of the files that the config names, by location."""

    command: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return config_digest(self.command, self.config, self.inputs)


def config_digest(command: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> str:
    """Two runs with the same digest do the same work.

    `inputs` maps locations to digests of their contents: a location counts by its contents, not by its name or place.
    """
    found = dict(inputs or {})
    first = plain(as_first_written(command, config))
    parts = [command, _by_contents(first, found), *([sorted(found.values())] if found else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _by_contents(value: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _by_contents(item, inputs) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_contents(item, inputs) for item in value]
    return {"contents": inputs[value]} if isinstance(value, str) and value in inputs else value


def differences(
    there: Mapping[str, Any],
    recorded: Mapping[str, str] | None,
    config: Mapping[str, Any],
    inputs: Mapping[str, str] | None,
) -> list[str]:
    """The differences between a run's config and this one, a phrase each: "lr: 0.001 there, 0.01 here".

    `there` is the run's config and `recorded` its inputs. Empty for a run of an earlier version that recorded less.
    """
    there = _flat(there)
    here = _flat(_without_none(plain(config)))
    before, now = recorded or {}, dict(inputs or {})
    told = []
    for name in [*here, *(name for name in there if name not in here)]:
        ours, theirs = here.get(name), there.get(name)
        if isinstance(ours, str) and ours in now and isinstance(theirs, str) and theirs in before:
            if now[ours] != before[theirs]:
                told.append(f"{name}: {ours} has other contents than {theirs} had")
        elif ours != theirs:
            told.append(f"{name}: {_shown(theirs)} there, {_shown(ours)} here")
    return told


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(item) if isinstance(item, list) else item
    return flat


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _shown(value: object) -> str:
    return "unset" if value is None else str(value)[:60]


def plain(value: Any) -> Any:
    """The config as JSON values. A path without a digest of its contents becomes absolute."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value
