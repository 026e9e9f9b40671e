"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`note` is a short line of the work's own figures, such as "EM 45.0 %, 1,234 tokens/s"."""

    def __call__(self, done: int, total: int, /, note: str = "") -> None: ...
