"""Libraries that only some commands need: extras of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from dgpo_cli.errors import ConfigError


def require(module: str, extra: str, what: str) -> None:
    """Raises ConfigError, naming the extra, where `module` is not installed; imports nothing."""
    if find_spec(module) is None:
        raise ConfigError(
            f"{what} needs {module}, which is not installed",
            hint=f"in the folder of dgpo's sources: pip install -c constraints.txt -e '.[{extra}]'",
        )
