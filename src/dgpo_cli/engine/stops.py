"""When a turn's text is complete: stop strings found in the bytes that tokens stand for.

With a byte-level vocabulary `</search>` is several tokens, and its last token may reach beyond it (`>\n\n`); a
character may be split over tokens. Matching bytes as they come needs none of that to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopMatcher:
    """Fed one token of a turn after the other; serves one turn. Raises ValueError for an empty stop string."""

    def __init__(self, stop: Sequence[str], token_bytes: Callable[[int], bytes]) -> None:
        self._stop = tuple(text.encode() for text in stop)
        if not all(self._stop):
            raise ValueError(f"an empty string stops nothing: {tuple(stop)}")
        self._token_bytes = token_bytes
        self._keep = max((len(text) for text in self._stop), default=1) - 1  # what a match may begin in
        self._ends = frozenset(text[-1] for text in self._stop)
        self._turn: list[bytes] = []
        self._found = False

    def feed(self, token_id: int) -> bool:
        """Whether the turn's text, this token included, contains a stop string."""
        text = self._token_bytes(token_id)
        self._turn.append(text)
        # A stop string is complete only where a token brings its last byte, which few tokens do.
        if not self._found and not self._ends.isdisjoint(text):
            self._found = any(stop in self._recent(len(text)) for stop in self._stop)
        return self._found

    def _recent(self, new: int) -> bytes:
        """The end of the turn's text in which a stop string may lie that `new` last bytes complete."""
        tail, place = b"", len(self._turn)
        while place and len(tail) < self._keep + new:
            place -= 1
            tail = self._turn[place] + tail
        return tail
