"""Places as records hold them: relative to the project, so that its folder can be moved or copied.

And texts that may be a place or a list of names, which may be longer than any place is.
"""

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


def is_there(text: str) -> bool:
    """Whether a text names a file or folder that is there."""
    try:
        return Path(text).exists()
    except OSError:  # it is too long for a name
        return False


def is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        return False
