"""Text that repeats itself: a model that has run into a loop writes it until its context is full.

A turn is looked at every `EVERY` tokens, so what is found depends on its tokens alone. It is a loop when its end is
one cycle of at most `CYCLE` tokens again and again: `TIMES` times at least, and over `LEAST` tokens at least.
All four numbers are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

EVERY = 32
CYCLE = 256  # a paragraph
TIMES = 4
LEAST = 64


def loop_end(turn: Sequence[int], seen: int) -> int | None:
    """Length of a turn at which a loop is first found, else None; its first `seen` tokens were checked before."""
    for count in range((seen // EVERY + 1) * EVERY, len(turn) + 1, EVERY):
        for cycle in range(1, min(CYCLE, count // TIMES) + 1):
            size = max(LEAST, TIMES * cycle)
            if size > count or turn[count - 1] != turn[count - 1 - cycle]:  # most cycles, without a copy
                continue
            if turn[count - size + cycle : count] == turn[count - size : count - cycle]:
                return count
    return None
