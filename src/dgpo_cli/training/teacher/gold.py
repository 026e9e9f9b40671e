"""A teacher that knows which passages answer a question, and demonstrates how to find and read them.

It searches for one supporting passage after the other by its title: one that the question names, then one that was
mentioned in what was read, the one that holds the answer last. Where no title is left to search for, it asks once with
the question's own words. It stops as soon as the answer was read in a supporting passage and only the answer's own
page is left. Every thought after a search quotes the sentence on which the next step rests. It knows nothing but titles
and answers, so these are its limits: a query is a title or the question, never a description; the quoted sentence is
the one that holds the words and most of the question's, which need not be the one that states the fact; of things that
are compared it quotes how their passages begin; and where the answer was not read, it says so and is not kept.
An unanswerable question it answers so in any case, after the searches that it would make.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from dgpo_cli.core.text import contains_answer, holds_phrase, is_judgement, normalize_answer, text_key
from dgpo_cli.core.types import Action, Passage, Question
from dgpo_cli.formats.abstention import ABSTENTION, is_unanswerable
from dgpo_cli.formats.base import Format
from dgpo_cli.retrieval.corpus.split import sentences

NOT_FOUND = "unknown"
_MAX_WORDS = 20  # ours, of a quotation
_MAX_COMPARED = 11  # ours, of each of two
_NAMED = 0.5  # ours, share of a title's words that make the question name it
_BRACKETS = re.compile(r"\s*\([^()]*\)\s*$")
_Step = tuple[str, Action, str]  # thought, action, query or answer


def turn(question: Question, read: Sequence[Sequence[Passage]], form: Format) -> str:
    """The next turn, after the passages that each search has shown. The question names supporting titles."""
    seen: list[Passage] = []
    asked: list[str] = []
    for found in read:
        wanted = _next_query(question, seen, asked)
        asked += [] if wanted is None else [wanted]
        seen += found
    wanted = _next_query(question, seen, asked)
    return form.write(*(_answer(question, seen) if wanted is None else _search(question, seen, wanted)))


def query(title: str) -> str:
    """A title without what stands in brackets behind it: nobody who asks can know it."""
    written = html.unescape(title)
    return _BRACKETS.sub("", written).strip() or written


def _next_query(question: Question, seen: Sequence[Passage], asked: Sequence[str]) -> str | None:
    """The next query; None if everything was found, the answer was read, or nothing is left to ask."""
    left = _left(question, seen)
    if not left or _was_read(question, seen, left):
        return None
    words = {*normalize_answer(question.text).split()}

    def rank(title: str) -> tuple[bool, bool, bool, float]:
        own = normalize_answer(query(title)).split()
        named = sum(word in words for word in own) / max(1, len(own))
        grounded = named >= _NAMED or _mention(title, seen) is not None
        return grounded, named == 1.0, not contains_answer(title, question.answers), named

    best = max((title for title in left if query(title) not in asked), key=rank, default=None)
    if best is not None and rank(best)[0]:
        return query(best)
    return None if question.text in asked else question.text


def _was_read(question: Question, seen: Sequence[Passage], left: Sequence[str]) -> bool:
    """Whether a supporting passage held the answer and all that is `left` to look up is the answer's own page.

    An answer that the question names is one of several to choose from: there every passage counts.
    """
    answers = [answer for answer in question.answers if not holds_phrase(question.text, answer)]
    own_pages = all(any(holds_phrase(query(title), answer) for answer in answers) for title in left)
    return own_pages and any(holds_phrase(p.text, answer) for p in _supporting(question, seen) for answer in answers)


def _search(question: Question, seen: Sequence[Passage], wanted: str) -> _Step:
    if wanted == question.text:
        return "I look for what the question asks.", "search", wanted
    if not seen:
        return f"I need to find out about {wanted}.", "search", wanted
    mention = _mention(wanted, seen)
    if mention is not None:
        return f'It says: "{mention}" So I look up {wanted}.', "search", wanted
    told = _supporting(question, seen)[-1:]
    quoted = f'It says: "{_beginning(told[0])}" ' if told else ""
    return f"{quoted}Next I look up {wanted}.", "search", wanted


def _answer(question: Question, seen: Sequence[Passage]) -> _Step:
    if is_unanswerable(question):
        return "The results do not say it.", "answer", ABSTENTION
    supporting = _supporting(question, seen)
    everything = " ".join(passage.contents for passage in seen)
    answer = next((answer for answer in question.answers if holds_phrase(everything, answer)), None)
    answer = answer or next((answer for answer in question.answers if contains_answer(everything, [answer])), None)
    choice = next(filter(is_judgement, question.answers), None)
    if answer is None and not _left(question, seen):
        answer = choice
    if answer is None:
        return "The results do not say it.", "answer", NOT_FOUND
    told = [_beginning(passage, _MAX_COMPARED) for passage in supporting[-2:]]
    if choice is None and not holds_phrase(question.text, answer):
        told = _telling(question, [*reversed(supporting)], answer) or _telling(question, [*reversed(seen)], answer)
    quoted = " ".join(f'"{sentence}"' for sentence in told)
    return f"It says: {quoted} So the answer is {answer}." if told else f"It is {answer}.", "answer", answer


def _supporting(question: Question, seen: Sequence[Passage]) -> list[Passage]:
    """Supporting passages in the order in which they were first read, each once."""
    titles = question.supporting_titles
    return [passage for passage in dict.fromkeys(seen) if any(_is_of(passage, title) for title in titles)]


def _left(question: Question, seen: Sequence[Passage]) -> list[str]:
    """Supporting titles of which nothing was read."""
    titles = dict.fromkeys(question.supporting_titles)
    return [title for title in titles if not any(_is_of(passage, title) for passage in seen)]


def _is_of(passage: Passage, title: str) -> bool:
    """Whether a passage is the one of a title, or a part of it: "Walter Gay - Early life" is of "Walter Gay"."""
    own, wanted = text_key(passage.title), text_key(title)
    return own == wanted or own.startswith(f"{wanted} -")


def _telling(question: Question, passages: Iterable[Passage], answer: str) -> list[str]:
    """The sentence, of the first passage that holds the answer, that has it and shares most words with the question."""
    words = {*normalize_answer(question.text).split()}
    for passage in passages:
        holding = [sentence for sentence in sentences(passage.text) if contains_answer(sentence, [answer])]
        if holding:
            best = max(holding, key=lambda sentence: len(words & {*normalize_answer(sentence).split()}))
            return [_quoted(best, answer)]
    return []


def _mention(title: str, seen: Sequence[Passage]) -> str | None:
    """The sentence, last read first, that names a title."""
    name = query(title)
    for passage in reversed(seen):
        for sentence in sentences(passage.text):
            if holds_phrase(sentence, name):
                return _quoted(sentence, name)
    return None


def _beginning(passage: Passage, most: int = _MAX_WORDS) -> str:
    return _quoted(next(sentences(passage.text), ""), "", most)


def _quoted(sentence: str, phrase: str, most: int = _MAX_WORDS) -> str:
    """A sentence, or of a long one the words around `phrase`; without double quotes, which would end the quotation."""
    words = sentence.replace('"', "'").split()
    wanted = normalize_answer(phrase).split()
    plain = [normalize_answer(word) for word in words]
    place = next((i for i in range(len(plain)) if wanted and plain[i : i + len(wanted)] == wanted), None)
    if place is None:
        place = next((i for i, word in enumerate(plain) if wanted and wanted[0] in word), 0)
    end = place + len(wanted)
    start = 0 if end <= most else min(end + 5 - most, place)
    return " ".join(words[start : start + most])
