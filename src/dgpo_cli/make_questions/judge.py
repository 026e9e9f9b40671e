"""Checks of a made question that need no model: its text, and whether the index finds its passages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dgpo_cli.core.text import contains_answer, holds_phrase, normalize_answer, text_key
from dgpo_cli.core.types import Hit, Passage, SearchCall
from dgpo_cli.make_questions.candidate import Candidate, Fate, MadeKind, subject
from dgpo_cli.retrieval.base import Retriever, search_many
from dgpo_cli.retrieval.evidence import evidence, is_quotable

_MOST_WORDS = 10  # ours, of an answer
_MOST_LETTERS = 100  # of one in a script without spaces
_TEXT = "passage|text|article|document|paragraph|excerpt|sentence|context"
_NAMES_PASSAGE = re.compile(
    rf"\b(?:the|this|that|these|those|both|given|above|first|second) (?:\w+ )?(?:{_TEXT})s?\b"
    rf"|\b(?:{_TEXT}) (?:\d|one\b|two\b)"
    r"|\baccording to (?:it|this|the)\b|\bmentioned (?:above|here)\b",
    re.IGNORECASE,
)
_NAMED = 0.5  # ours, as of the teacher `gold`: share of a title's words that make a text name it


def by_text(candidate: Candidate) -> Candidate | Fate:
    """The candidate with the sentence that holds its answer, or why it falls."""
    if not is_quotable(candidate.answer) or _is_long(candidate.answer):
        return Fate.LONG_ANSWER
    last_first = tuple(Hit(passage, 0.0, rank) for rank, passage in enumerate(reversed(candidate.gold), start=1))
    if candidate.kind is MadeKind.WHICH_OF:  # its answer is a title, and the first passage is about it
        last_first = last_first[::-1]
    found = evidence(candidate.answer, [SearchCall("", last_first)])
    if found is None:
        return Fate.NOT_IN_PASSAGE
    if candidate.kind is not MadeKind.WHICH_OF and contains_answer(candidate.text, [candidate.answer]):
        return Fate.HOLDS_ANSWER
    if _NAMES_PASSAGE.search(_own_words(candidate)):
        return Fate.NAMES_PASSAGE
    if candidate.hidden and holds_phrase(candidate.text, candidate.hidden):
        return Fate.NAMES_LINK
    return replace(candidate, sentence=text_key(found.sentence))


def _is_long(answer: str) -> bool:
    return len(answer.split()) > _MOST_WORDS or len(answer) > _MOST_LETTERS


def _own_words(candidate: Candidate) -> str:
    """The question without what it says of a passage's name: "The Paragraph" may be one."""
    text = candidate.text
    for passage in candidate.gold:
        if about := subject(passage):
            text = text.replace(about, " ")
    return text


def found_by_index(candidates: Sequence[Candidate], retriever: Retriever, k: int) -> list[bool]:
    """Whether an agent can find all gold passages among the first `k` of some query each.

    A query is the question itself, or what a gold passage is about, or the name that the question leads to, where the
    question or a passage that was found says it.
    """
    missing = [list(candidate.gold) for candidate in candidates]
    asked: list[set[str]] = [set() for _ in candidates]
    for _ in range(1 + max((len(gold) for gold in missing), default=0)):
        queries = [
            (place, query)
            for place, candidate in enumerate(candidates)
            if missing[place]
            for query in _queries(candidate, missing[place])
            if query not in asked[place]
        ]
        for (place, query), hits in zip(
            queries, search_many(retriever, [query for _, query in queries], k), strict=True
        ):
            asked[place].add(query)
            ids = {hit.passage.id for hit in hits}
            missing[place] = [passage for passage in missing[place] if passage.id not in ids]
    return [not gold for gold in missing]


def _queries(candidate: Candidate, missing: Sequence[Passage]) -> list[str]:
    known = [candidate.text, *(passage.contents for passage in candidate.gold if passage not in missing)]
    names = dict.fromkeys([*(subject(passage) for passage in missing), candidate.hidden])
    return [candidate.text, *(name for name in names if name and any(_says(text, name) for text in known))]


def _says(text: str, name: str) -> bool:
    words, own = {*normalize_answer(text).split()}, normalize_answer(name).split()
    return bool(own) and sum(word in words for word in own) / len(own) >= _NAMED
