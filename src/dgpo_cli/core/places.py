"""Places as records hold them: relative to the project, so that its folder can be moved or copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def portable(value: Any, project: Path = Path()) -> Any:
    """`value`, at any depth, with every absolute path inside the folder `project` made relative to it."""
    if isinstance(value, Mapping):
        return {portable(key, project): portable(item, project) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, project) for item in value]
    if isinstance(value, str) and value.startswith("/") and "\n" not in value:
        path, root = Path(value), project.resolve()
        # With "./" in front nobody takes it for the name of a model on the hub.
        return f"./{path.relative_to(root)}" if path != root and path.is_relative_to(root) else value
    return value
