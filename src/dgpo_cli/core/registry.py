"""Names to implementations as "package.module:Attribute" strings, so that listing them imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dgpo_cli.errors import ConfigError


def load(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The object registered as `name`. Raises ConfigError that lists the names."""
    if name not in table:
        raise ConfigError(f"unknown {kind} {name!r}", hint=f"choose one of: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
