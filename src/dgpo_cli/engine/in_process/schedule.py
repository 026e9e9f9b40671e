"""Which slots go through the model together, and in which rows of the cache they lie.

Everything here depends on token counts alone, never on time, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgpo_cli.engine.base import Sampling, SlotId
from dgpo_cli.engine.stops import StopMatcher

SHARED_TOKENS = 16  # a shorter common beginning is not worth a copy
_DENSE = 0.75  # of the rows that attention looks at are at work, or rows are moved together


@dataclass(slots=True)
class Slot:
    id: SlotId
    row: int
    sampling: Sampling
    prompt: tuple[int, ...]
    pending: list[int]  # tokens that are not in the cache yet
    stops: StopMatcher
    stream: int = 0
    length: int = 0  # tokens in the cache
    turn: int = 0
    written: int = 0  # tokens of the current turn
    running: bool = True


def passes(running: Sequence[Slot], limit: int) -> Iterator[list[Slot]]:
    """Slots by forward pass, at most `limit` new tokens in each: those with one come first, then by length."""
    chosen: list[Slot] = []
    tokens = 0
    for slot in sorted(running, key=lambda s: (len(s.pending), s.row)):
        if chosen and tokens + len(slot.pending) > limit:
            yield chosen
            chosen, tokens = [], 0
        chosen.append(slot)
        tokens += len(slot.pending)
    if chosen:
        yield chosen


def moves(running: Sequence[Slot]) -> list[tuple[Slot, int]]:
    """Running slots in high rows and the low rows that they should move to; none while the rows are dense enough."""
    window = max(slot.row for slot in running) + 1
    if len(running) >= _DENSE * window:
        return []
    taken = {slot.row for slot in running}
    free = (row for row in range(len(running)) if row not in taken)
    high = sorted((slot for slot in running if slot.row >= len(running)), key=lambda s: s.row)
    return list(zip(high, free, strict=True))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
