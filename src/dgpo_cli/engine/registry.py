"""Names of the engines that a model is loaded into: that of this process, and programs that load it by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dgpo_cli.core import registry
from dgpo_cli.errors import ConfigError

if TYPE_CHECKING:
    from dgpo_cli.engine.base import Engine
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.sources import ModelSource

IN_PROCESS = "transformers"  # whose parameters an engine here reads in place; the name that records hold
ENGINES: dict[str, str] = {"vllm": "dgpo_cli.engine.turnwise.vllm:VLLM"}


class LoadingEngine(Protocol):
    """An engine that loads a model by itself."""

    @staticmethod
    def require() -> None:
        """Raises ConfigError where it is not installed; imports nothing heavy."""
        ...

    @staticmethod
    def open(source: ModelSource, codec: Codec, /, *, max_tokens: int, dtype: str, seed: int) -> Engine:
        """Load a model; slots hold `max_tokens`, or its context if that is less; `dtype` such as "bfloat16"."""
        ...


def require_engine(name: str) -> None:
    """Raises ConfigError for an unknown engine, or one that is not installed."""
    if name != IN_PROCESS:
        loading_engine(name).require()


def require_engine_name(name: str) -> None:
    """Raises ConfigError that lists the names; imports nothing."""
    if name != IN_PROCESS and name not in ENGINES and not registry.is_outside(name):
        known = ", ".join((IN_PROCESS, *ENGINES))
        raise ConfigError(
            f"engine = {name!r} is unknown", hint=f"known: {known}; or name your own as package.module:Attribute"
        )


def loading_engine(name: str) -> type[LoadingEngine]:
    """The engine of a name other than IN_PROCESS. Raises ConfigError."""
    found: type[LoadingEngine] = registry.load(ENGINES, name, "engine", has=("require", "open"))
    return found
