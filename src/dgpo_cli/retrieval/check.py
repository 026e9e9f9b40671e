"""Is an index whole, and how good is it? Integrity, recall and answer-hit at k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgpo_cli.core.text import contains_answer
from dgpo_cli.core.types import Hit, Question
from dgpo_cli.errors import RetrievalError
from dgpo_cli.retrieval.open import OpenIndex

BATCH = 256


@dataclass(frozen=True, slots=True)
class RetrievalQuality:
    """Shares from 0 to 1 by k. Recall is the mean over questions with known gold passages of those found in the top k."""

    questions: int
    with_gold: int
    recall: dict[int, float]
    answer_hit: dict[int, float]


def check_integrity(index: OpenIndex) -> int:
    """Read every passage; returns how many there are. Raises RetrievalError at the first that cannot be read."""
    if index.passages is None:
        raise RetrievalError(f"{index.location} is a server; only an index folder can be checked", hint="give --index DIR")
    for row in range(len(index.passages)):
        try:
            _ = index.passages[row].contents
        except ValueError as error:
            raise RetrievalError(f"{index.location}: passage {row} is damaged: {error}", hint="build the index again") from error
    return len(index.passages)


def measure(index: OpenIndex, questions: Sequence[Question], ks: Sequence[int]) -> RetrievalQuality:
    """Gold passages are matched by id, or by title where only titles are known."""
    recall, found = dict.fromkeys(ks, 0.0), dict.fromkeys(ks, 0)
    with_gold = 0
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        results = index.retriever.search([question.text for question in part], max(ks))
        for question, hits in zip(part, results, strict=True):
            gold = set(question.supporting_ids or question.supporting_titles)
            with_gold += bool(gold)
            for k in ks:
                top = hits[:k]
                if gold:
                    recall[k] += len(gold & _names(question, top)) / len(gold)
                found[k] += any(contains_answer(hit.passage.contents, question.answers) for hit in top)
    return RetrievalQuality(
        questions=len(questions),
        with_gold=with_gold,
        recall={k: value / with_gold for k, value in recall.items()} if with_gold else {},
        answer_hit={k: value / max(1, len(questions)) for k, value in found.items()},
    )


def _names(question: Question, hits: Sequence[Hit]) -> set[str]:
    return {hit.passage.id if question.supporting_ids else hit.passage.title for hit in hits}
