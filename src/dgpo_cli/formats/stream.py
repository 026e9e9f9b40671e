"""Streamed text of an episode, split into pieces by kind: a thought, a query, an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["think", "search", "results", "answer"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text between two tags, or a tag itself. `kind` is its kind; None outside the agent's text."""

    text: str
    kind: Kind | None
    is_tag: bool = False

    @property
    def closes(self) -> bool:
        """A tag that ends the text of its kind."""
        return self.is_tag and self.text.startswith("</")


class TagStream:
    """Splits text that arrives in chunks into pieces; a tag that may still be completed is held back.

    `kinds` maps every tag, `<x>` and `</x>`, to the kind of the text between them; `outside` is the kind elsewhere.
    """

    def __init__(self, kinds: Mapping[str, Kind], outside: Kind | None = None) -> None:
        self._kinds, self._outside = kinds, outside
        self._tags = re.compile("|".join(map(re.escape, kinds)))
        self._held = ""
        self._kind = outside

    def feed(self, text: str) -> list[Piece]:
        pieces, text, place = [], self._held + text, 0
        for match in self._tags.finditer(text):
            pieces.append(Piece(text[place : match.start()], self._kind))
            pieces.append(Piece(match[0], self._kinds[match[0]], is_tag=True))
            self._kind = self._outside if match[0].startswith("</") else self._kinds[match[0]]
            place = match.end()
        rest = text[place:]
        begun = rest.rfind("<")
        held = begun >= 0 and any(tag.startswith(rest[begun:]) for tag in self._kinds)
        self._held = rest[begun:] if held else ""
        pieces.append(Piece(rest[:begun] if held else rest, self._kind))
        return [piece for piece in pieces if piece.text]

    def flush(self) -> list[Piece]:
        """The text that was held back, at the end of a turn; the next turn starts outside any tag."""
        rest = [Piece(self._held, self._kind)] if self._held else []
        self._held, self._kind = "", self._outside
        return rest
