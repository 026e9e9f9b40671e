"""Answers compared as in the reference (Search-R1 qa_em.py; SQuAD, Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKS = 30  # combining marks on one letter; the limit of Unicode's stream-safe text (UAX 15)
_LONG_RUN = re.compile(rb"[^\0]{31,}")  # in the text's combining classes
_SAY_NOTHING = ("P", "Z", "M", "Cc", "Cf")  # categories: punctuation, separators, marks, controls, invisible signs
_BLANK = "\u115f\u1160\u2800\u3164\uffa0\ufffc"  # letters and signs that show nothing either
_JUDGEMENTS = ("yes", "no")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def composed(text: str) -> str:
    """The text in Unicode's form NFC, where a letter with its accent is one character however it was typed.

    In linear time: beyond 30 marks on a letter they are no longer sorted among each other.
    """
    if text.isascii():
        return text
    pieces, start = [], 0
    for run in _LONG_RUN.finditer(bytes(map(unicodedata.combining, text))):
        for cut in range(run.start() + _MARKS, run.end(), _MARKS):
            pieces.append(text[start:cut])
            start = cut
    return "".join(unicodedata.normalize("NFC", piece) for piece in (*pieces, text[start:]))


def text_key(text: str) -> str:
    """Form in which titles and ids are compared: NFC, white space collapsed, case kept (as in Wikipedia)."""
    return " ".join(composed(text).split())


def normalize_answer(text: str) -> str:
    """NFC, lower case, ASCII punctuation deleted, the words a, an and the removed, white space collapsed."""
    return " ".join(_ARTICLE.sub(" ", composed(text).lower().translate(_PUNCTUATION)).split())


def is_empty_answer(text: str) -> bool:
    """Whether nothing is left of an answer after normalization, as of "---", "A", ")" or a dash of any script."""
    return not _left(text)


def _left(text: str) -> str:
    """The normalized text; "" where it is punctuation, blanks, marks and invisible characters only.

    Normalization deletes ASCII punctuation alone, as in the reference, and an em dash stands in most passages.
    """
    normalized = normalize_answer(text)
    return normalized if any(map(_says_something, normalized)) else ""


def _says_something(character: str) -> bool:
    return not unicodedata.category(character).startswith(_SAY_NOTHING) and character not in _BLANK


def is_judgement(answer: str) -> bool:
    """Whether an answer is yes or no, which is concluded and stands in no passage."""
    return normalize_answer(answer) in _JUDGEMENTS


def comparable(text: str) -> str:
    """The normalized text; where that is empty, the text in lower case with its articles and punctuation."""
    return normalize_answer(text) or _as_written(text)


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the normalized prediction equals any normalized answer.

    An answer whose normalized form is empty is compared as it is written: it must stand, with its articles and
    punctuation, in a prediction of which nothing is left either. So "---" equals "---" and "A" equals "a", and neither
    equals "the" or a blank text.
    """
    normalized, given = _left(prediction), f" {_as_written(prediction)} "
    for answer in answers:
        gold, written = _left(answer), _as_written(answer)
        if (gold and gold == normalized) or (written and not gold and not normalized and f" {written} " in given):
            return True
    return False


def _as_written(text: str) -> str:
    return text_key(text).lower()


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether any normalized answer is a substring of the normalized text; never one of which nothing is left."""
    normalized = normalize_answer(text)
    return any(bool(gold) and gold in normalized for gold in map(_left, answers))


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as whole words, in the form in which answers are compared; never one of which
    nothing is left.
    """
    wanted = _left(phrase)
    return bool(wanted) and f" {wanted} " in f" {normalize_answer(text)} "


def share_phrase(a: str, b: str) -> bool:
    """Whether one of two phrases holds the other as whole words."""
    return holds_phrase(a, b) or holds_phrase(b, a)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Token F1 of the normalized strings, best over the answers; exact match where nothing is left of one of them."""
    words = Counter(_left(prediction).split())
    best = 0.0
    for answer in answers:
        gold = Counter(_left(answer).split())
        if not words or not gold:
            best = max(best, float(exact_match(prediction, [answer])))
            continue
        common = sum((words & gold).values())
        best = max(best, 2 * common / (words.total() + gold.total()))
    return best
