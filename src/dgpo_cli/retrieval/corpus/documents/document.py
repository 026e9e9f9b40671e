"""The content of a user's file, a title and sections of text, and the decoding of its bytes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_CHARACTERS = 100_000_000  # of a file, ours


class Unreadable(Exception):
    """Why a file gives no text, as "kind (details)"."""


@dataclass(frozen=True, slots=True)
class Section:
    heading: str  # empty before the first heading
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    title: str  # empty where the file has none
    sections: list[Section]


class Budget:
    """Characters that a file may still give: in some forms a small file can name a long text a million times."""

    def __init__(self) -> None:
        self._left = MOST_CHARACTERS

    def spend(self, text: str) -> str:
        """The text itself. Raises Unreadable where the file has given too much."""
        self._left -= len(text)
        if self._left < 0:
            raise Unreadable(f"oversized text (more than {MOST_CHARACTERS:,} characters)")
        return text


def decoded(content: bytes, declared: str | None = None) -> str:
    """Text by its byte order mark, by what the file declares, or as UTF-8. Raises Unreadable."""
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if marked in (None, "utf-8-sig") and b"\0" in content:
        raise Unreadable("binary")
    # A page in bytes that says it is UTF-16 is not: the saying could not have been read.
    encoding = marked or (declared if declared and not declared.lower().startswith("utf-16") else "utf-8")
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise Unreadable(f"not {encoding} (convert it to UTF-8)") from error
    if not text.strip():
        raise Unreadable("empty")
    return writable(text)


def writable(text: str) -> str:
    """Without halves of surrogate pairs, which broken fonts and odd encodings give and UTF-8 cannot hold."""
    return text.encode("utf-8", "ignore").decode()
