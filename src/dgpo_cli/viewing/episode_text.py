"""A trajectory as a reader sees it: what was written and what was read, step by step, as text."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from dgpo_cli.core.text import contains_answer, f1
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, SearchCall
from dgpo_cli.evaluation.outcome import error_kind
from dgpo_cli.rewards import exact_match

if TYPE_CHECKING:
    from dgpo_cli.models.codec import Codec

Tokens = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class ShownHit:
    """A passage that a search returned, without its text."""

    id: str
    title: str
    score: float
    gold: bool
    answer: bool  # an accepted answer stands in it


@dataclass(frozen=True, slots=True)
class ShownSearch:
    """A search and what it returned."""

    query: str
    error: str | None
    seconds: float
    hits: list[ShownHit]


@dataclass(frozen=True, slots=True)
class ShownStep:
    """A stretch of tokens of one kind."""

    kind: str  # prompt, result, correction where the model read; search, answer, think (no action) where it wrote
    text: str
    tokens: int
    search: int | None  # place among the trajectory's searches of the call that it made
    pieces: list[str] | None = None  # the text of each token, where the model wrote and something is known of them
    values: dict[str, list[float | None]] | None = None  # what is known of each, by name


@dataclass(frozen=True, slots=True)
class ShownAttempt:
    """An episode as a page shows it, beside others at the same question."""

    answer: str | None
    correct: bool
    cause: str | None  # of a wrong answer
    reward: float
    parts: dict[str, float]  # of the reward
    f1: float
    stop: str
    invalid: int  # turns without an action
    truncated: int  # results
    written: int  # tokens
    read: int  # tokens
    searches: list[ShownSearch]
    steps: list[ShownStep]  # none without a codec: nothing else turns tokens into text
    more: bool = False  # the page asks for the steps


@dataclass(frozen=True, slots=True)
class ShownQuestion:
    """A question as a page shows it."""

    key: str
    bench: str
    text: str
    answers: list[str]
    hops: int | None

    @classmethod
    def of(cls, key: str, bench: str, question: Question, **attempts: Any) -> Self:
        return cls(key, bench, question.text, list(question.answers), question.hops, **attempts)


def attempt(trajectory: Trajectory, codec: Codec | None, tokens: Tokens, *, more: bool = False) -> ShownAttempt:
    """`tokens` is what is known of each token, by name."""
    score = trajectory.score or exact_match.score(trajectory.question, trajectory)
    answer = trajectory.answer
    return ShownAttempt(
        answer=answer,
        correct=score.correct,
        cause=None if score.correct else error_kind(trajectory).value,
        reward=score.total,
        parts=dict(score.parts),
        f1=0.0 if answer is None else f1(answer, trajectory.question.answers),
        stop=trajectory.stop.value,
        invalid=trajectory.invalid_actions,
        truncated=trajectory.truncated_observations,
        written=trajectory.num_written,
        read=len(trajectory.token_ids) - trajectory.num_written,
        searches=[_search(call, trajectory.question) for call in trajectory.searches],
        steps=[] if codec is None else steps(trajectory, codec, tokens),
        more=more,
    )


def steps(trajectory: Trajectory, codec: Codec, tokens: Tokens) -> list[ShownStep]:
    """The stretches of an episode, in order."""
    # A turn that the record does not know, as where a bit of it flipped, is shown as one without an action.
    actions = {turn.start: turn.action for turn in codec.with_turns(trajectory).known_turns}
    found: list[ShownStep] = []
    made = 0
    for written, start, stop in trajectory.spans():
        search = None
        kind: str
        if written:
            kind = actions.get(start) or "think"
            if kind == "search" and made < len(trajectory.searches):
                search, made = made, made + 1
        elif not found:
            kind = "prompt"
        else:
            kind = "result" if found[-1].search is not None else "correction"
        ids = trajectory.token_ids[start:stop]
        step = ShownStep(kind, codec.decode(ids), stop - start, search)
        if written and tokens:
            known = {name: list(values[start:stop]) for name, values in tokens.items()}
            step = replace(step, pieces=pieces(ids, codec), values=known)
        found.append(step)
    return found


def pieces(ids: Sequence[int], codec: Codec) -> list[str]:
    """The text of each token; a character of several tokens stands at the last of them. Joined they are the text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(codec.token_bytes(token)) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.decode(b"", final=True)]


def _search(call: SearchCall, question: Question) -> ShownSearch:
    hits = [
        ShownHit(
            id=hit.passage.id,
            title=hit.passage.title,
            score=hit.score,
            gold=question.key_of(hit.passage) in question.gold_keys,
            answer=contains_answer(hit.passage.contents, question.answers),
        )
        for hit in call.hits
    ]
    return ShownSearch(call.query, call.error, call.seconds, hits)
