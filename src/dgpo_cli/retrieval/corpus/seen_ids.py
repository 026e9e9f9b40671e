"""Has this id been seen before? Exact enough for any corpus, in little memory.

Passage dumps mostly count their ids up ("0", "1", ...): such a run costs nothing. Any other id costs the 8 bytes of its
hash; two different ids collide with a chance of n * n / 2**65 (one in 80,000 for 21 million), and are then reported
as a duplicate rather than kept.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_RECENT = 1 << 16


class SeenIds:
    def __init__(self) -> None:
        self._first = self._next = -1  # the run of decimal ids so far: first <= id < next
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []  # of growing length from right to left, uint64

    def add(self, identity: str) -> bool:
        """Remember `identity`; False if it was there already."""
        number = _decimal(identity)
        if number is not None:
            if self._first <= number < self._next:
                return False
            if self._next < 0:
                self._first = self._next = number
            if number == self._next:
                self._next += 1
                # An id that was seen before the run reached it is among the hashes.
                return not self._hashed(identity)
        if self._hashed(identity):
            return False
        self._recent.add(_hash(identity))
        if len(self._recent) >= _RECENT:
            self._settle()
        return True

    def _hashed(self, identity: str) -> bool:
        if not self._recent and not self._sorted:
            return False
        key = _hash(identity)
        if key in self._recent:
            return True
        for level in self._sorted:
            place = int(np.searchsorted(level, np.uint64(key)))
            if place < len(level) and int(level[place]) == key:
                return True
        return False

    def _settle(self) -> None:
        """Sort the recent hashes and merge levels of like size, so that there are only about log2(n / 65536)."""
        level = np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) <= len(level):
            level = np.sort(np.concatenate([self._sorted.pop(), level]), kind="stable")
        self._sorted.append(level)


def _decimal(identity: str) -> int | None:
    """The number that `identity` writes in its one plain decimal form ("7", never "07" or "٧")."""
    plain = identity.isascii() and identity.isdigit() and len(identity) <= 18
    return int(identity) if plain and (identity == "0" or identity[0] != "0") else None


def _hash(identity: str) -> int:
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little")
