"""Callback types for what long work reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_EVERY_S = 0.5  # seconds between reports while no episode ends


Say = Callable[[str], None]
"""Gets a line that a person may want to know."""


class Progress(Protocol):
    """`note` is a short line of the work's own figures, such as "EM 45.0 %, 1,234 tokens/s"."""

    def __call__(self, done: int, total: int, /, note: str = "") -> None: ...


Bar = Callable[[str, str], AbstractContextManager[Progress]]
"""A progress bar while a block lasts, from what is done and the unit that it is counted in."""


class Pace:
    """Reports progress of episodes: each one that ends, and the token count while none does."""

    def __init__(self, progress: Progress | None, total: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._progress, self._total, self._clock = progress, total, clock
        self._began = self._told_at = clock()
        self._told = 0

    def tell(self, finished: int, tokens: int) -> None:
        """`tokens` were written so far, those of unfinished episodes included."""
        now = self._clock()
        if self._progress is None or (finished == self._told and now - self._told_at < _EVERY_S):
            return
        self._told, self._told_at = finished, now
        self._progress(finished, self._total, f"{tokens / max(now - self._began, 1e-9):,.0f} tokens/s")


class Steps:
    """Progress of long work whose steps hold work of their own, such as rollouts and evaluations.

    The progress of `inside` work is appended to the note of its step.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._at: tuple[int, int] | None = None
        self._note = ""

    def __call__(self, done: int, total: int, /, note: str = "") -> None:
        self._at, self._note = (done, total), note
        if self._progress is not None:
            self._progress(done, total, note)

    def inside(self, what: str) -> Progress:
        def tell(done: int, total: int, /, note: str = "") -> None:
            if self._progress is not None and self._at is not None:
                own = f"{what} {done:,}/{total:,}{f', {note}' if note else ''}"
                self._progress(*self._at, f"{self._note}; {own}" if self._note else own)

        return tell
