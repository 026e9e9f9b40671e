"""Names, dates and numbers in a sentence: what can be asked for, and what passages have in common.

A name is a run of words that begin with a capital letter, small words such as "of" allowed between them, or what stands
between backticks: in technical notes the things that are spoken of are commands and settings. Scripts without capital
letters have no other names here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dgpo_cli.core.text import is_empty_answer

_WORD = re.compile(r"(?:[^\W\d_]\.)+(?=\s|$)|[^\W_]+(?:['’&.-][^\W_]+)*")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:\d{{1,2}} )?(?:{_MONTH}) (?:\d{{1,2}}, )?\d{{4}}\b")
_NUMBER = re.compile(r"(?<![\w.,-])\d[\d.,]*\d(?![\w-])")
_BETWEEN = frozenset(("of", "the", "de", "la", "le", "du", "des", "del", "di", "da", "van", "von", "der", "den"))
# Words that a sentence begins with and no name does.
_OPENER = re.compile(
    "a|an|the|in|on|at|it|its|he|his|she|her|they|their|this|that|these|those|there|as|after|before|during|when|while|"
    "since|until|from|for|by|with|and|but|or|if|one|some|many|most|all|both|each|another|other|what|who|which|where|"
    "how|why|to|we|our|you|your|i|my|not|no",
    re.IGNORECASE,
)
_MOST_WORDS = 6  # ours, of an answer
# Ours: of 3 to 40 characters that begin with a letter or the mark of an option.
_CODE = re.compile(r"(?<![`\w])`((?=-{0,2}[^\W\d_])[^`\s][^`\n]{1,38}[^`\s])`(?![`\w])")
_NO_PROSE = re.compile(r"\||```")  # a row of a table, a block of a program


@dataclass(frozen=True, slots=True)
class Span:
    """A name in a text: characters [start, end)."""

    start: int
    end: int
    text: str
    is_code: bool = False  # it stands between backticks, which are not part of it


def names(sentence: str) -> list[Span]:
    """Runs of capitalized words, never a word alone that only begins the sentence, and code, in order."""
    words = [*_WORD.finditer(sentence)]
    code = _code(sentence)
    plain = (span for run in _runs(sentence, words) if (span := _trimmed(sentence, run)) is not None)
    return sorted([*code, *(span for span in plain if not _meets(span, code))], key=lambda span: span.start)


def is_prose(sentence: str) -> bool:
    """Whether it may be a sentence: a row of a Markdown table or a program is none."""
    return _NO_PROSE.search(sentence) is None


def _code(sentence: str) -> list[Span]:
    return [Span(match.start(1), match.end(1), match[1], is_code=True) for match in _CODE.finditer(sentence)]


def find(sentence: str, name: str, *, is_code: bool = False) -> Span | None:
    """A name as it is written, between words; one of code stands as code there, alone or with what belongs to it."""
    sign, end = ("`", r"(?=[`\s=(])") if is_code else (r"(?<![^\W_])", r"(?![^\W_])")
    match = re.search(f"{sign}({re.escape(name)}){end}", sentence) if name else None
    return None if match is None else Span(match.start(1), match.end(1), name, is_code)


def asked_for(sentence: str) -> list[Span]:
    """Dates, numbers and names that a question can ask for, in order; none lies in another."""
    found = [Span(match.start(), match.end(), match[0]) for match in _DATE.finditer(sentence)]
    found += [span for span in names(sentence) if not _meets(span, found)]
    found += [
        Span(match.start(), match.end(), match[0])
        for match in _NUMBER.finditer(sentence)
        if not _meets(Span(match.start(), match.end(), match[0]), found)
    ]
    usable = (span for span in found if len(span.text.split()) <= _MOST_WORDS and not is_empty_answer(span.text))
    return sorted(usable, key=lambda span: span.start)


def _runs(sentence: str, words: list[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """Capitalized words that nothing but a blank and small words stand between."""
    run: list[re.Match[str]] = []
    small: list[re.Match[str]] = []
    for word in words:
        joined = bool(run) and sentence[(small or run)[-1].end() : word.start()] == " "
        joined = joined and not (run[-1][0].endswith(".") and _OPENER.fullmatch(word[0]))  # "World War I. It was"
        if word[0][0].isupper():
            if joined:
                run += [*small, word]
            else:
                if run:
                    yield run
                run = [word]
            small = []
        elif joined and word[0] in _BETWEEN and len(small) < 2:
            small.append(word)
        else:
            if run:
                yield run
            run, small = [], []
    if run:
        yield run


def _trimmed(sentence: str, run: list[re.Match[str]]) -> Span | None:
    while run and (_OPENER.fullmatch(run[0][0]) or run[0][0].lower() in _BETWEEN):
        run = run[1:]
    if not run:
        return None
    begins = not sentence[: run[0].start()].strip(" \"'“‘([")
    if (begins and len(run) == 1 and not run[0][0].isupper()) or len(run[0][0]) + len(run) < 3:
        return None
    start, end = run[0].start(), run[-1].end()
    return Span(start, end, sentence[start:end])


def _meets(span: Span, others: list[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)
