"""One graded episode: was it right, was it well formed, what did it retrieve, and why was it wrong.

Every definition is in docs/evaluation.md. They are ours: neither the paper nor Search-R1 sorts errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dgpo_cli.core.text import contains_answer, f1, is_empty_answer
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, SearchCall, StopReason
from dgpo_cli.formats.abstention import abstains, is_unanswerable
from dgpo_cli.retrieval.evidence import evidence, is_quotable
from dgpo_cli.rewards import exact_match


class ErrorKind(StrEnum):
    """Why an answer is wrong, in order of precedence: the first that holds."""

    NO_ANSWER = "no_answer"  # none was given, or nothing of it is left after normalization
    WRONG_FORMAT = "wrong_format"  # a turn had no action, or the answer says more than an accepted one
    WRONG_RETRIEVAL = "wrong_retrieval"  # no retrieved passage holds an accepted answer
    ANSWER_NOT_USED = "answer_not_used"  # one does, and the given answer is in none
    WRONG_REASONING = "wrong_reasoning"  # one does, and the given answer was picked from retrieved passages


@dataclass(frozen=True, slots=True)
class Outcome:
    """The contribution of one graded episode to a summary."""

    question: str  # QA set and id; several draws of a question share it
    hops: int | None
    em: bool
    f1: float
    substring: bool
    format_valid: bool | None  # None where the record does not hold its turns
    error: ErrorKind | None  # None where the answer is right
    first_hit: bool | None  # a gold answer stands in a passage of the first search; None for an unanswerable question
    answer_retrieved: bool | None  # the same of all searches
    evidence_recall: float | None  # share of the gold passages that were retrieved; None where they are unknown
    unanswerable: bool
    abstained: bool  # it says that the documents do not hold the answer
    answered: bool  # it answered, and did not abstain
    supported: bool | None  # its answer stands in a retrieved passage; None without one, or where it is yes or no
    gold_supported: bool | None  # that passage is a gold one; None also where these are unknown
    confidence: float | None  # mean log-probability of the answer's tokens; None without an answer, or if unknown
    stop: StopReason
    searches: int
    turns: int
    invalid_actions: int
    truncated_observations: int
    escaped_tags: int
    written_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The fields of a record other than the trajectory."""
        names = ("em", "f1", "format_valid", "error", "first_hit", "answer_retrieved", "evidence_recall",
                 "unanswerable", "abstained", "supported", "gold_supported")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def grade(trajectory: Trajectory) -> Outcome:
    """An episode without an answer scores 0 everywhere."""
    question, answer = trajectory.question, trajectory.answer
    unanswerable = is_unanswerable(question)
    answered = answer is not None and not is_empty_answer(answer) and not abstains(answer)
    supported, gold_supported = support(trajectory) if answered else (None, None)
    correct = exact_match.score(question, trajectory).correct
    return Outcome(
        question=question.key,
        hops=question.hops,
        em=correct,
        f1=0.0 if answer is None else f1(answer, question.answers),
        substring=answer is not None and contains_answer(answer, question.answers),
        format_valid=None if trajectory.written_turns is None else is_format_valid(trajectory),
        error=None if correct else error_kind(trajectory),
        first_hit=None if unanswerable else holds_answer(trajectory.searches[:1], question.answers),
        answer_retrieved=None if unanswerable else holds_answer(trajectory.searches, question.answers),
        evidence_recall=evidence_recall(question, trajectory.searches),
        unanswerable=unanswerable,
        abstained=abstains(answer),
        answered=answered,
        supported=supported,
        gold_supported=gold_supported,
        confidence=trajectory.answer_logprob if answered else None,
        stop=trajectory.stop,
        searches=len(trajectory.searches),
        turns=trajectory.turns,
        invalid_actions=trajectory.invalid_actions,
        truncated_observations=trajectory.truncated_observations,
        escaped_tags=trajectory.escaped_tags,
        written_tokens=trajectory.num_written,
    )


def error_kind(trajectory: Trajectory) -> ErrorKind:
    """The cause of a wrong answer; every wrong episode has exactly one."""
    answer, gold = trajectory.answer, trajectory.question.answers
    if answer is None or is_empty_answer(answer):
        return ErrorKind.NO_ANSWER
    if trajectory.invalid_actions or contains_answer(answer, gold):
        return ErrorKind.WRONG_FORMAT
    if not is_unanswerable(trajectory.question) and not holds_answer(trajectory.searches, gold):
        return ErrorKind.WRONG_RETRIEVAL
    if not holds_answer(trajectory.searches, (answer,)):
        return ErrorKind.ANSWER_NOT_USED
    return ErrorKind.WRONG_REASONING


def is_format_valid(trajectory: Trajectory) -> bool:
    """Every turn is one thought at most and then one action, nothing else; the last action, and no other, answers."""
    if trajectory.stop is not StopReason.ANSWERED:
        return False
    return trajectory.answers_last and all(turn.alone and turn.content for turn in trajectory.known_turns)


def holds_answer(searches: Sequence[SearchCall], answers: Sequence[str]) -> bool:
    """Whether a retrieved passage holds one of the answers, both normalized, as the index has the passage."""
    return any(contains_answer(hit.passage.contents, answers) for call in searches for hit in call.hits)


def support(trajectory: Trajectory) -> tuple[bool | None, bool | None]:
    """Whether the answer stands as whole words in a retrieved passage, and whether that one is a gold passage.

    The passage is the one that `dgpo chat` names. None where an answer cannot stand in one, and where no gold passage
    is known.
    """
    answer, question = trajectory.answer, trajectory.question
    if answer is None or not is_quotable(answer):
        return None, None
    found = evidence(answer, trajectory.searches)
    if is_unanswerable(question) or not question.gold_keys:
        return found is not None, None
    return found is not None, found is not None and question.key_of(found.passage) in question.gold_keys


def evidence_recall(question: Question, searches: Sequence[SearchCall]) -> float | None:
    """Share of the gold passages among everything retrieved: by id, or by title where only titles are known."""
    gold = question.gold_keys
    if not gold or is_unanswerable(question):
        return None
    found = {question.key_of(hit.passage) for call in searches for hit in call.hits}
    return len(gold & found) / len(gold)
