"""The answers that were asked for last, bounded by what they hold rather than by their number."""

from __future__ import annotations

from collections import OrderedDict

from dgpo_cli.core.types import Hit

Key = tuple[str, int]  # query, k
_CHARS_LIKE_A_PASSAGE = 1_000  # a query of so many characters costs as much as a passage


class Cache:
    """Least recently used out first; an answer costs its passages and one, and more for a long query."""

    def __init__(self, passages: int) -> None:
        self._limit = passages
        self._held: OrderedDict[Key, list[Hit]] = OrderedDict()
        self.cost = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> list[Hit] | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, key: Key, hits: list[Hit]) -> None:
        if key in self._held:
            self.cost -= _cost(key, self._held.pop(key))
        self._held[key] = hits
        self.cost += _cost(key, hits)
        while self.cost > self._limit:
            self.cost -= _cost(*self._held.popitem(last=False))


def _cost(key: Key, hits: list[Hit]) -> int:
    return 1 + len(hits) + len(key[0]) // _CHARS_LIKE_A_PASSAGE
