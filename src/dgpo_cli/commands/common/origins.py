"""Messages about the origin of a model that a command is given."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.console import Console

_KEYS = ("student", "teacher", "model")


def tell_origin(console: Console, key: str, name: str) -> None:
    """Say where a model from a GGUF file comes from; the first time, the file is read here, which takes seconds."""
    if key not in _KEYS:
        return
    from dgpo_cli.models.aliases import ALIASES
    from dgpo_cli.models.gguf import is_gguf

    if is_gguf(Path(name).expanduser()) or (name in ALIASES and ALIASES[name].package is not None):
        from dgpo_cli.models.sources import origin

        described = origin(name)
        if described is not None:
            console.info(f"{key}: {described}, from a GGUF file")
