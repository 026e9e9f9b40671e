"""Names of formats. Strings, so that listing them imports nothing."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points

from dgpo_cli.core import registry
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.base import Format

FORMATS = {
    "tags": "dgpo_cli.formats.tags:Tags",
    "tool_calls": "dgpo_cli.formats.tool_calls:ToolCalls",
}
GROUP = "dgpo_cli.formats"  # entry points by which an installed package declares formats of its own


@cache
def get(name: str) -> Format:
    """The format of a name, of an entry point in GROUP, or of a `package.module:Class` that the user has imported.

    Raises ConfigError that lists the names. A name may come from a model's record, so it imports nothing but what this
    package or an installed one declares: naming a module must not run it.
    """
    table = dict(FORMATS)
    if name not in table:
        table |= {point.name: point.value for point in entry_points(group=GROUP)}
    is_imported = name in table.values() or name.partition(":")[0] in sys.modules
    found = registry.load(table, name, "format", outside=registry.is_outside(name) and is_imported)
    if not (isinstance(found, type) and issubclass(found, Format)):
        raise ConfigError(f"{name!r} is no format", hint="name a subclass of dgpo_cli.formats.base.Format")
    form: Format = found()
    return form
