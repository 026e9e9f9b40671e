"""Rows of a data set of the hub, `hf:REPO`, `hf:REPO:SPLIT` or `hf:REPO:CONFIG:SPLIT`; no code of it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo_cli.core.hub import unreachable
from dgpo_cli.errors import InputError, first_line

PREFIX = "hf:"


def hub_rows(location: str) -> Any:
    """The split as `datasets` has it, memory-mapped from the hub's cache. Raises InputError where it cannot be had."""
    from datasets import load_dataset

    repo, *rest = location.removeprefix(PREFIX).split(":")
    split = rest.pop() if rest else "train"
    if not repo or len(rest) > 1:
        raise InputError(f"{location} is no data set of the hub", hint="write it like hf:REPO:SPLIT")
    try:
        return load_dataset(repo, rest[0] if rest else None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = None if Path(repo).exists() else unreachable()
        what = f"is not cached, and {reason}" if reason else f"cannot be loaded: {first_line(error)}"
        raise InputError(f"{location} {what}", hint="write it like hf:REPO:CONFIG:SPLIT") from error
