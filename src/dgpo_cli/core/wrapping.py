"""Text on lines of a terminal: broken between words, and inside a word only if it is longer than a line.

Widths are counted in cells, by a function that the caller hands over: a Chinese character takes two.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Cells = Callable[[str], int]
Piece = tuple[str, str | None]  # text and its style

# Characters that are written without spaces between words, and wide: a line may end after each.
_WIDE = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff60\U00020000-\U0003ffff"
_PIECES = re.compile(rf"\n|[^\S\n]+|[{_WIDE}]|[^\s{_WIDE}]+")
_IS_WIDE = re.compile(rf"[{_WIDE}]")
_TAB = "    "


class Flow:
    """Wraps text that arrives in pieces, each with its style; the caller writes at once what `feed` and `flush` return.

    A word is held back until its end has come, so that it can go to the next line whole.
    """

    def __init__(self, width: Callable[[], int], cells: Cells) -> None:
        self._width, self._cells = width, cells
        self._blanks: list[Piece] = []  # before the word
        self._word: list[Piece] = []
        self._lengths = [0, 0]  # of the blanks and of the word
        self._broken = False  # the word is longer than a line, and its beginning is written
        self.column = 0

    def feed(self, text: str, style: str | None = None) -> list[Piece]:
        done: list[Piece] = []
        for match in _PIECES.finditer(text):
            piece = match[0]
            if piece == "\n":
                done += [*self.flush(), ("\n", None)]
                self.column = 0
            elif piece.isspace():
                done += self._end_word()
                self._blanks.append((piece.replace("\t", _TAB), style))
                self._lengths[0] += self._cells(self._blanks[-1][0])
            elif _IS_WIDE.match(piece):
                done += self._end_word()
                self._hold(piece, style)
                done += self._end_word()
            elif self._broken:
                done += self._letters(piece, style)
            else:
                self._hold(piece, style)
                if self._lengths[1] > self._width():
                    done += self._break_word()
        return done

    def flush(self) -> list[Piece]:
        """The text that was held back, at the end of a line or of the text."""
        done = self._end_word()
        if self.column + self._lengths[0] <= self._width():
            done += self._blanks
            self.column += self._lengths[0]
        self._forget()
        return done

    def _hold(self, piece: str, style: str | None) -> None:
        self._word.append((piece, style))
        self._lengths[1] += self._cells(piece)

    def _forget(self) -> None:
        self._blanks, self._word, self._lengths = [], [], [0, 0]

    def _end_word(self) -> list[Piece]:
        """The word with the blanks before it, or on the next line without them."""
        self._broken = False
        if not self._word:
            return []
        done = self._begin_word(sum(self._lengths)) + self._word
        self.column += self._lengths[1]
        self._forget()
        return done

    def _begin_word(self, length: int) -> list[Piece]:
        """The text to write before a word that needs, with its blanks, `length` cells on its first line."""
        if self.column + length <= self._width():
            self.column += self._lengths[0]
            return [*self._blanks]
        begun, self.column = self.column, 0
        return [("\n", None)] if begun else []

    def _break_word(self) -> list[Piece]:
        """The beginning of a word that no line holds; the rest follows as it comes."""
        done = self._begin_word(self._lengths[0] + 1)
        done += [piece for text, style in self._word for piece in self._letters(text, style)]
        self._forget()
        self._broken = True
        return done

    def _letters(self, text: str, style: str | None) -> list[Piece]:
        done: list[Piece] = []
        begun = 0
        for place, character in enumerate(text):
            length = self._cells(character)
            if self.column + length > self._width():
                done += [(text[begun:place], style), ("\n", None)]
                begun, self.column = place, 0
            self.column += length
        return [*done, (text[begun:], style)]


def wrapped(text: str, width: int, cells: Cells) -> list[str]:
    """The lines of a text."""
    flow = Flow(lambda: max(1, width), cells)
    return "".join(piece for piece, _ in [*flow.feed(text), *flow.flush()]).split("\n")


def first_line(text: str, width: int, cells: Cells) -> str:
    """How a text begins, on one line; an ellipsis stands for the rest."""
    begin = " ".join(text[: 4 * width].split())
    if cells(begin) <= width and len(text) <= 4 * width:
        return begin
    return f"{wrapped(begin, width - 2, cells)[0]} …"
