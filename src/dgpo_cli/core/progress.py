"""What long work reports, to whom, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, Self

from dgpo_cli.core.figures import duration, rate

_EVERY_S = 0.5  # seconds between reports while no episode ends
_FIRST_LINE_S, _LINE_S = 5.0, 60.0  # when progress first speaks without a terminal, and how often then


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


class Estimate:
    """Rate and time left of counted work, as texts: by what was done since the first report, at `now` seconds.

    What was done before is no work of this process, and loading before it is none of that work.
    """

    def __init__(self, unit: str) -> None:
        self._unit, self._began = unit, 0.0
        self._first: int | None = None
        self._last = 0

    def report(self, done: int, now: float) -> None:
        if self._first is None or done < self._last:  # another pass over the same things has a rate of its own
            self._first, self._began = done, now
        self._last = done

    def rate(self, now: float) -> str:
        speed = self._speed(now)
        return rate(speed, self._unit) if speed and self._unit != "s" else ""  # seconds of a limit pass by themselves

    def left(self, total: int, now: float) -> str:
        speed = self._speed(now)
        return f"{duration((total - self._last) / speed)} left" if speed and total else ""

    def _speed(self, now: float) -> float:
        """0 where it is not known yet: of less than a second it would be a guess."""
        if self._first is None or now - self._began < 1:
            return 0.0
        return (self._last - self._first) / (now - self._began)


class Lines:
    """Progress where no bar can be drawn: a line soon and then one a minute, also while nothing is reported."""

    def __init__(self, description: str, unit: str, say: Say) -> None:
        self._description, self._say, self._estimate = description, say, Estimate(unit)
        self._counted_in = " s" if unit == "s" else ""
        self._began = self._told_at = time.monotonic()
        self._wait = _FIRST_LINE_S
        self._at: tuple[int, int, str] | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._remind, name="progress", daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._ended.set()

    def __call__(self, done: int, total: int, /, note: str = "") -> None:
        with self._lock:
            now = time.monotonic()
            self._at = done, total, note
            self._estimate.report(done, now)
            self._speak(now)

    def _remind(self) -> None:
        left = self._wait
        while not self._ended.wait(left):
            with self._lock:
                now = time.monotonic()
                if not self._ended.is_set():
                    self._speak(now)
                left = max(0.0, self._told_at + self._wait - now)

    def _speak(self, now: float) -> None:
        if now - self._told_at < self._wait:
            return
        self._told_at, self._wait = now, _LINE_S
        so_far = f"{duration(now - self._began)} so far"
        if self._at is None:
            self._say(f"{self._description}: {so_far}")
            return
        done, total, note = self._at
        figures = ", ".join(filter(None, (self._estimate.rate(now), self._estimate.left(total, now)))) or so_far
        counted = f"{done:,}/{f'{total:,}' if total else '?'}{self._counted_in} ({figures})"
        self._say(f"{self._description}: {counted}{f'; {note}' if note else ''}")
