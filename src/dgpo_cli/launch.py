"""Processes of a launcher, such as `accelerate launch`."""

from __future__ import annotations

import os


def launch_fault() -> str:
    """The fault of a launcher's variables; "" where there is none, or no launcher."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    fits = not (rank and size) or (rank.isdecimal() and size.isdecimal() and int(rank) < int(size))
    return "" if fits else f"RANK is {rank!r} and WORLD_SIZE is {size!r}"


def processes() -> int:
    """Number of processes that a launcher, such as `accelerate launch`, started to work together."""
    return int(os.environ.get("WORLD_SIZE") or 1) if os.environ.get("RANK") and not launch_fault() else 1


def is_first_process() -> bool:
    """Whether this is the one of them that speaks and writes."""
    return processes() == 1 or os.environ["RANK"] == "0"
