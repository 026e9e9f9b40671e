"""When a turn is complete: stop strings found in the bytes that tokens stand for, and end-of-text tokens.

With a byte-level vocabulary a closing tag is several tokens, and its last token may reach beyond it (`>\n\n`); a
character may be split over tokens. Matching on bytes avoids these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class Stops:
    """What ends a turn, for any number of turns. Raises ValueError for an empty stop string."""

    def __init__(self, stop: Sequence[str], token_bytes: Callable[[int], bytes], eos_ids: Collection[int] = ()) -> None:
        self.texts = tuple(text.encode() for text in stop)
        if not all(self.texts):
            raise ValueError(f"an empty string stops nothing: {tuple(stop)}")
        self.token_bytes, self.eos_ids = token_bytes, frozenset(eos_ids)
        self.keep = max((len(text) for text in self.texts), default=1) - 1  # bytes that a match may begin in
        self._last_bytes = frozenset(text[-1] for text in self.texts)
        self.harmless: set[int] = set()  # tokens seen so far that cannot end a turn

    def can_end(self, token_id: int) -> bool:
        """Whether a token may end a turn: few have the last byte of a stop string."""
        if token_id in self.eos_ids or not self._last_bytes.isdisjoint(self.token_bytes(token_id)):
            return True
        self.harmless.add(token_id)
        return False


class StopMatcher:
    """Fed the tokens of one turn as they come."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._turn: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """How many of these tokens there are up to the one that ends the turn; None if none does."""
        start = len(self._turn)
        self._turn.extend(token_ids)
        if self._stops.harmless.issuperset(token_ids):
            return None
        for place, token in enumerate(token_ids, start=start):
            if self._stops.can_end(token) and (token in self._stops.eos_ids or self._complete(place)):
                return place - start + 1
        return None

    def _complete(self, place: int) -> bool:
        """Whether the token at `place` completes a stop string."""
        new = self._stops.token_bytes(self._turn[place])
        tail, wanted = new, self._stops.keep + len(new)
        while place and len(tail) < wanted:
            place -= 1
            tail = self._stops.token_bytes(self._turn[place]) + tail
        return any(text in tail for text in self._stops.texts)
