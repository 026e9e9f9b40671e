"""Answers compared as in the reference (Search-R1 qa_em.py; SQuAD, Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, ASCII punctuation deleted, the words a, an and the removed, white space collapsed."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the normalized prediction equals any normalized answer."""
    normalized = normalize_answer(prediction)
    return any(normalize_answer(answer) == normalized for answer in answers)


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether any normalized answer is a substring of the normalized text."""
    normalized = normalize_answer(text)
    return any(normalize_answer(answer) in normalized for answer in answers)


substring_match = contains_answer


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Token F1 of the normalized strings, best over the answers; 1 where both are empty."""
    words = Counter(normalize_answer(prediction).split())
    best = 0.0
    for answer in answers:
        gold = Counter(normalize_answer(answer).split())
        if not words or not gold:
            best = max(best, float(words == gold))
            continue
        common = sum((words & gold).values())
        best = max(best, 2 * common / (words.total() + gold.total()))
    return best
