"""Where an answer stands in the passages that were found."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dgpo_cli.core.text import is_empty_answer, is_judgement, normalize_answer
from dgpo_cli.core.types import Passage, SearchCall
from dgpo_cli.core.wrapping import wrapped
from dgpo_cli.retrieval.lexical.scripts import spaceless_runs

# After the mark that ends a sentence, but not after an initial; and between lines.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Za-z]\.)\s+|(?<=[。！？])|\n+")
_LONGEST = 300  # characters of a sentence
_TOGETHER = 3  # sentences that an answer may span, as "St. Louis" seems to
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))


@dataclass(frozen=True, slots=True)
class Evidence:
    place: int  # of the passage among those of all searches, from 0
    passage: Passage
    sentence: str


def evidence(answer: str | None, searches: Sequence[SearchCall]) -> Evidence | None:
    """The first of `all_evidence`."""
    return next(all_evidence(answer, searches), None)


def all_evidence(answer: str | None, searches: Sequence[SearchCall]) -> Iterator[Evidence]:
    """The passages in which an answer stands as whole words, compared as answers are, each with the sentence.

    Texts come before titles and later searches before earlier ones, since an answer comes from what was read last; a
    passage that was found several times comes once. None for no answer, "yes", "no", and one of which normalization
    leaves nothing.
    """
    if answer is None or not is_quotable(answer):
        return
    holds = _finder(answer)
    passages: list[tuple[int, Passage]] = []
    place = 0
    for call in searches:
        passages[:0] = [(place + rank, hit.passage) for rank, hit in enumerate(call.hits)]
        place += len(call.hits)
    texts = [(place, passage, passage.text) for place, passage in passages]
    titles = [(place, passage, passage.title) for place, passage in passages]
    told = set()
    for place, passage, text in texts + titles:
        if passage not in told and holds(text):
            told.add(passage)
            yield Evidence(place, passage, _sentence(text, holds))


def is_quotable(answer: str) -> bool:
    """Whether an answer can stand in a passage; "yes", "no" and one of which normalization leaves nothing cannot."""
    return not is_empty_answer(answer) and not is_judgement(answer)


def _finder(answer: str) -> Callable[[str], bool]:
    """Tests if a text holds the answer as whole words, punctuation deleted or, as in "Trelu's", made a blank."""
    wanted = {normalize_answer(answer), normalize_answer(answer.translate(_BLANKS))} - {""}

    def holds(text: str) -> bool:
        forms = (normalize_answer(text), normalize_answer(text.translate(_BLANKS)))
        return any(_as_words(gold, form) for form in forms for gold in wanted)

    return holds


def _as_words(gold: str, text: str) -> bool:
    place = text.find(gold)
    while place >= 0:
        end = place + len(gold)
        if not _inside_word(text[max(0, place - 1) : place + 1]) and not _inside_word(text[end - 1 : end + 1]):
            return True
        place = text.find(gold, place + 1)
    return False


def _inside_word(pair: str) -> bool:
    """Whether two neighbours belong to one word; in scripts without spaces every character may end one."""
    together = all(letter.isalnum() or unicodedata.category(letter) in ("Mn", "Mc") for letter in pair)
    return len(pair) == 2 and together and not spaceless_runs().search(pair)


def _sentence(text: str, holds: Callable[[str], bool]) -> str:
    """The shortest run of sentences for which `holds` is true; the first sentence if the run is long."""
    sentences = [
        piece
        for sentence in _SENTENCE_END.split(text)
        for piece in wrapped(" ".join(sentence.split()), _LONGEST, len)
        if piece
    ]
    for together in range(1, _TOGETHER + 1):
        for begin in range(len(sentences) - together + 1):
            run = " ".join(sentences[begin : begin + together])
            if holds(run):
                return run
    return sentences[0]
