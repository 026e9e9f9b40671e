"""Names to implementations as "package.module:Attribute" strings, so that listing them imports nothing.

The same form names an implementation of a package outside of this one, wherever a name may stand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from dgpo_cli.errors import ConfigError

_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_outside(name: str) -> bool:
    """Whether a name is of the form "package.module:Attribute"."""
    return _OUTSIDE.fullmatch(name) is not None


def load(
    table: Mapping[str, str], name: str, kind: str, *, outside: bool = True, has: Collection[str] = ("__call__",)
) -> Any:
    """The object registered as `name`, or the one that "package.module:Attribute" names.

    `outside` is False where the name stands in a file that others may have written: importing runs code. `has` are
    attributes without which an object of another package is no `kind`.
    Raises ConfigError that lists the names, or says what keeps a module from being imported.
    """
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    if not outside or not is_outside(name):
        own = "; or name your own as package.module:Attribute" if outside else ""
        raise ConfigError(f"unknown {kind} {name!r}", hint=f"choose one of: {', '.join(table)}{own}")
    module, _, attribute = name.partition(":")
    try:
        imported = import_module(module)
    except Exception as error:  # whatever the code of a module raises
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        hint = f"install it where dgpo is installed, and try: python -c 'import {module}'"
        raise ConfigError(f"{kind} {name!r}: {why}", hint=hint) from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"{kind} {name!r}: {module} has no attribute {attribute!r}", hint=f"name what {module} has")
    found = getattr(imported, attribute)
    if missing := [each for each in has if not hasattr(found, each)]:
        raise ConfigError(f"{name!r} is no {kind}: it has no {missing[0]}", hint="docs/architecture.md, Registries")
    return found
