"""Running text to passages of about 100 words, cut at sentence borders.

100 words is the unit of the Wikipedia dumps that search agents are trained on (DPR, Karpukhin et al. 2020). Passages of
one section are made alike in length, so that no short rest is left over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORDS = 100
_CHARACTERS_PER_WORD = 10  # beyond this text counts by its characters: scripts without spaces, tables, code
_LONGEST_PIECE = 150  # words; a longer sentence is cut between words
_BLANK_LINE = re.compile(r"\n\s*\n")
_OWN_LINE = re.compile(r"\n(?=\s*(?:[-*+•|]|\d{1,3}[.)])\s)")  # list items and table rows
# The end of a sentence, with closing quotes and brackets; in Chinese and Japanese no space follows it.
# Without backtracking, so that a page of dots costs no more than another.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s++(?=[^a-z])|[。！？]++[」』”’）]*+")
_LOOK_BACK = 16  # characters, more than the longest abbreviation
_NO_END = re.compile(
    r"(?:^|[\s(\[\"'“])(?:[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|al|No|Nos|Vol|Fig|pp?|ca|approx|Inc|Ltd"
    r"|Co|Gen|Col|Lt|Capt|Sgt|Rev|Hon|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|[^\W\d_](?:\.[^\W\d_])+)\.\s*$"
)


def passages(text: str) -> Iterator[str]:
    """Texts of about 100 words each, single-spaced, in order; together they hold every word of `text`."""
    pieces = [piece for sentence in sentences(text) for piece in _pieces(sentence)]
    sizes = [size(piece) for piece in pieces]
    count = max(1, round(sum(sizes) / WORDS))
    target = sum(sizes) / count
    start, before = 0, 0.0
    border = target
    for place, piece_size in enumerate(sizes):
        # The border is nearest to where it belongs if the middle of the next sentence lies beyond it.
        if place > start and before + piece_size / 2 > border:
            yield " ".join(pieces[start:place])
            start = place
            border += target
        before += piece_size
    if pieces:
        yield " ".join(pieces[start:])


def sentences(text: str) -> Iterator[str]:
    """Sentences, list items and table rows, each single-spaced. A blank line ends a sentence in any case."""
    for paragraph in _BLANK_LINE.split(text):
        for block in _OWN_LINE.split(paragraph):
            start = 0
            for end in _SENTENCE_END.finditer(block):
                if not _NO_END.search(block[max(start, end.start() - _LOOK_BACK) : end.end()]):
                    yield from _spaced(block[start : end.end()])
                    start = end.end()
            yield from _spaced(block[start:])


def size(text: str) -> int:
    """Words, or characters by the ten where that is more."""
    return max(len(text.split()), len(text) // _CHARACTERS_PER_WORD)


def _spaced(text: str) -> Iterator[str]:
    if single := " ".join(text.split()):
        yield single


def _pieces(sentence: str) -> Iterator[str]:
    """The sentence, or if it is overlong (a table, a log, a script without full stops) equal parts of it."""
    if size(sentence) <= _LONGEST_PIECE:
        yield sentence
        return
    part = ""
    for word in sentence.split():
        for start in range(0, len(word), WORDS * _CHARACTERS_PER_WORD):
            chunk = word[start : start + WORDS * _CHARACTERS_PER_WORD]
            joined = f"{part} {chunk}" if part else chunk
            if part and size(joined) > WORDS:
                yield part
                joined = chunk
            part = joined
    yield part
