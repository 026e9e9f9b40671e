"""Libraries that only some commands need: extras of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from dgpo_cli.errors import ConfigError, DgpoError


def is_installed(module: str) -> bool:
    return find_spec(module) is not None


def require(module: str, extra: str, what: str, error: type[DgpoError] = ConfigError) -> None:
    """Raises `error`, naming the extra, where `module` is not installed; imports nothing."""
    if not is_installed(module):
        raise error(f"{what} needs {module}, which is not installed", hint=installing(extra))


def installing(extra: str) -> str:
    """For a hint."""
    return f"in the folder of dgpo's sources: pip install -c constraints.txt -e '.[{extra}]'"
