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
        self._tail = b""
        self._found = False

    def feed(self, token_id: int) -> bool:
        """Whether the turn's text, this token included, contains a stop string."""
        if not self._found:
            text = self._tail + self._token_bytes(token_id)
            self._tail = text[max(0, len(text) - self._keep) :]
            self._found = any(stop in text for stop in self._stop)
        return self._found
