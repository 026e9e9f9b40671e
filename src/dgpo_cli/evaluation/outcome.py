"""One graded episode: was it right, was it well formed, what did it retrieve, and why was it wrong.

Every definition is in docs/evaluation.md. They are ours: neither the paper nor Search-R1 sorts errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dgpo_cli.core.protocol import TAGS
from dgpo_cli.core.text import contains_answer, f1, is_empty_answer
from dgpo_cli.core.types import Question, SearchCall, StopReason, Trajectory
from dgpo_cli.rewards import exact_match

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, as the codec does it: special tokens are nothing."""

_INNER = rf"(?:(?!</?(?:{'|'.join(TAGS)})>).)*"  # text without a tag of the agent
_TURN = re.compile(
    rf"\s*(?:<think>{_INNER}</think>\s*)?<(?P<action>search|answer)>(?P<content>{_INNER})</(?P=action)>\s*", re.DOTALL
)


class ErrorKind(StrEnum):
    """Why an answer is wrong, in order of precedence: the first that holds."""

    NO_ANSWER = "no_answer"  # none was given, or nothing of it is left after normalization
    WRONG_FORMAT = "wrong_format"  # a turn had no action, or the answer says more than an accepted one
    WRONG_RETRIEVAL = "wrong_retrieval"  # no retrieved passage holds an accepted answer
    ANSWER_NOT_USED = "answer_not_used"  # one does, and the given answer is in none
    WRONG_REASONING = "wrong_reasoning"  # one does, and the given answer was picked from retrieved passages


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one graded episode adds to a summary."""

    question: str  # QA set and id; several draws of a question share it
    hops: int | None
    em: bool
    f1: float
    substring: bool
    format_valid: bool
    error: ErrorKind | None  # None where the answer is right
    first_hit: bool  # a gold answer stands in a passage that the first search returned
    answer_retrieved: bool  # the same of all searches
    evidence_recall: float | None  # share of the gold passages that were retrieved; None where they are unknown
    stop: StopReason
    searches: int
    turns: int
    invalid_actions: int
    truncated_observations: int
    escaped_tags: int
    written_tokens: int

    def to_json(self) -> dict[str, Any]:
        """What a record keeps of it beside the trajectory."""
        names = ("em", "f1", "format_valid", "error", "first_hit", "answer_retrieved", "evidence_recall")
        return {name: getattr(self, name) for name in names}


def grade(trajectory: Trajectory, decode: Decode) -> Outcome:
    """An episode without an answer scores 0 everywhere."""
    question, answer = trajectory.question, trajectory.answer
    correct = exact_match.score(question, trajectory).correct
    return Outcome(
        question=question.key,
        hops=question.hops,
        em=correct,
        f1=0.0 if answer is None else f1(answer, question.answers),
        substring=answer is not None and contains_answer(answer, question.answers),
        format_valid=is_format_valid(trajectory, decode),
        error=None if correct else error_kind(trajectory),
        first_hit=holds_answer(trajectory.searches[:1], question.answers),
        answer_retrieved=holds_answer(trajectory.searches, question.answers),
        evidence_recall=evidence_recall(question, trajectory.searches),
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
    if not holds_answer(trajectory.searches, gold):
        return ErrorKind.WRONG_RETRIEVAL
    if not holds_answer(trajectory.searches, (answer,)):
        return ErrorKind.ANSWER_NOT_USED
    return ErrorKind.WRONG_REASONING


def is_format_valid(trajectory: Trajectory, decode: Decode) -> bool:
    """Every turn is one thought at most and then one action, nothing else; the last action, and no other, answers."""
    if trajectory.stop is not StopReason.ANSWERED:
        return False
    matches = [_TURN.fullmatch(decode(ids)) for ids in written_turns(trajectory)]
    actions = [match["action"] if match is not None and match["content"].strip() else None for match in matches]
    return bool(actions) and actions == ["search"] * (len(actions) - 1) + ["answer"]


def written_turns(trajectory: Trajectory) -> Iterator[list[int]]:
    """Token ids of every turn that the model wrote: what it reads in between is never empty."""
    turn: list[int] = []
    for token, written in zip(trajectory.token_ids, trajectory.written, strict=True):
        if written:
            turn.append(token)
        elif turn:
            yield turn
            turn = []
    if turn:
        yield turn


def holds_answer(searches: Sequence[SearchCall], answers: Sequence[str]) -> bool:
    """Whether a retrieved passage holds one of the answers, both normalized, as the index has the passage."""
    return any(contains_answer(hit.passage.contents, answers) for call in searches for hit in call.hits)


def evidence_recall(question: Question, searches: Sequence[SearchCall]) -> float | None:
    """Share of the gold passages among everything retrieved: by id, or by title where only titles are known."""
    gold = question.gold_keys
    if not gold:
        return None
    found = {question.key_of(hit.passage) for call in searches for hit in call.hits}
    return len(gold & found) / len(gold)
