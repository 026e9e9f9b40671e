"""Disguised tags: text that a reader or a model takes for a tag of the agent, in other characters.

Recognized are letters of other alphabets and styles that look alike (Unicode's confusables, for the letters of tags),
full width, and invisible characters in between. No pattern backtracks: time is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

_STYLES = ((0x2100, 0x2150), (0x249C, 0x24EA), (0x1D400, 0x1D6A6), (0xFF21, 0xFF5B))  # math, circled, full width
_ALIKE = {
    "a": "\u0430\u03b1\u0251", "c": "\u0441\u03f2", "e": "\u0435\u04bd", "f": "\u0192", "h": "\u04bb\u0570",
    "i": "\u0456\u03b9\u0131l|1", "k": "\u043a\u03ba", "l": "\u04cf\u03b9\u0131i|1", "m": "\u043c", "n": "\u0578\u03b7",
    "o": "\u043e\u03bf\u05850", "p": "\u0440\u03c1", "r": "\u0433", "s": "\u0455", "t": "\u0442\u03c4",
    "w": "\u051d\u0461\u03c9", "_": "\uff3f\u203f",
}  # fmt: skip
# Controls, marks on letters, soft hyphens, joiners, marks of direction, selectors, tags, byte order marks.
_UNSEEN = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
OPENING = "[<\ufe64\uff1c]"


def look_alike(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the bracket of anything that reads as the beginning of a tag of one of `names`, opening or closing.

    In any case, with blanks inside, with attributes, or without its end bracket.
    """
    blank = rf"[\s{_UNSEEN}]*+"
    spelled = "|".join(f"[{_UNSEEN}]*+".join(map(_letter, name)) for name in names)
    return re.compile(rf"{OPENING}(?={blank}[/\uff0f\u2215]?+{blank}(?:{spelled})\b)", re.IGNORECASE)


def _letter(letter: str) -> str:
    return f"[{re.escape(letter + _ALIKE.get(letter, '') + _styled().get(letter, ''))}]"


@cache
def _styled() -> dict[str, str]:
    """By small letter, the same one in other styles, which compatibility decomposition (NFKC) makes plain."""
    found: dict[str, str] = {}
    for start, end in _STYLES:
        for code in range(start, end):
            plain = unicodedata.normalize("NFKC", chr(code)).lower().strip("()")
            if len(plain) == 1 and plain.isascii() and plain.isalpha():
                found[plain] = found.get(plain, "") + chr(code)
    return found
