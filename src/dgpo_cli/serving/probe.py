"""Whether a program that a server relies on answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from dgpo_cli.errors import DgpoError

_HOLDS_S, _TIMEOUT_S = 5.0, 5.0  # how long an answer holds, and how long it may take


class Probe:
    """`check` raises DgpoError where `what` does not answer; it is called in a thread."""

    def __init__(self, what: str, check: Callable[[], None]) -> None:
        self._what, self._check = what, check
        self._known: tuple[float, str | None] = (-math.inf, None)  # when, and what was wrong

    async def failure(self) -> str | None:
        """What is wrong; others who ask meanwhile get what was known."""
        now = time.monotonic()
        if now - self._known[0] > _HOLDS_S:
            self._known = now, self._known[1]
            try:
                await asyncio.wait_for(asyncio.to_thread(self._check), _TIMEOUT_S)
                cause = None
            except TimeoutError:
                cause = f"{self._what} did not answer within {_TIMEOUT_S:g} s"
            except DgpoError as error:
                cause = error.message
            self._known = now, cause
        return self._known[1]
