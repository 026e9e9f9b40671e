"""The assignment of slots to rows of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dgpo_cli.engine.base import SlotId
from dgpo_cli.engine.in_process.schedule import Slot
from dgpo_cli.engine.in_process.sizes import STEPS, bucket


class Rows:
    """`count` rows, each free or an open slot's."""

    def __init__(self, count: int, steps: int = STEPS) -> None:
        self._steps = steps  # of sizes of windows
        self._rows: list[Slot | None] = [None] * count
        self._slots: dict[SlotId, Slot] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Slot]:
        """Open slots, oldest first."""
        return iter(self._slots.values())

    def __getitem__(self, slot: SlotId) -> Slot:
        return self._slots[slot]

    @property
    def free(self) -> int:
        return len(self._rows) - len(self._slots)

    def first_free(self) -> int:
        return self._rows.index(None)

    def add(self, slot: Slot) -> None:
        assert self._rows[slot.row] is None, slot.row
        self._rows[slot.row] = self._slots[slot.id] = slot

    def remove(self, slot: SlotId) -> Slot:
        state = self._slots.pop(slot)
        self._rows[state.row] = None
        return state

    def swap(self, slot: Slot, row: int) -> Slot | None:
        """Move a slot into another row; the slot there takes its place, and is returned."""
        other, old = self._rows[row], slot.row
        if other is not None:
            other.row = old
        self._rows[old], self._rows[row], slot.row = other, slot, row
        return other

    def window(self, slots: Sequence[Slot]) -> int:
        """W, the number of leading rows in a pass that writes to the rows of `slots`."""
        return bucket(max(slot.row for slot in slots) + 1, len(self._rows), self._steps)

    def most(self) -> tuple[int, int]:
        """Number of leading rows that hold open slots, rounded as a window is, and the tokens of the longest."""
        return self.window(list(self)), max(slot.length + len(slot.pending) for slot in self)

    def lengths(self, window: int) -> np.ndarray:
        """Tokens [W] that the slot in each row has in the cache, whether it writes or waits; 0 for a free row.

        A pass over a whole window writes behind these lengths, so that no entry is lost.
        """
        return np.array([0 if slot is None else slot.length for slot in self._rows[:window]], dtype=np.int64)
