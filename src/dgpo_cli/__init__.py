"""dgpo: train and run compact language models that search like agents."""

from __future__ import annotations

TYPE_CHECKING = False  # that of `typing` would be imported before core/interrupts.py can answer Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from dgpo_cli.library import (
        Agent,
        LoadedModel,
        Objective,
        OpenIndex,
        Question,
        Report,
        Trajectory,
        evaluate,
        load_model,
        open_index,
        read_questions,
        train,
    )

__version__ = "0.2.0"
__all__ = [
    "Agent",
    "LoadedModel",
    "Objective",
    "OpenIndex",
    "Question",
    "Report",
    "Trajectory",
    "evaluate",
    "load_model",
    "open_index",
    "read_questions",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public names are loaded when they are first used: the command line starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dgpo_cli import library

    return getattr(library, name)
