"""The record of one episode: tokens, which of them a model wrote, searches, answer, score. No torch.

One alignment rule for the whole package: every per-token sequence has the length of `token_ids`, and entry t is about
token t, so `logprobs[t]` is log p(token t | tokens before t).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from dgpo_cli.core import schema
from dgpo_cli.core.records import RecordFile, write_jsonl_atomic
from dgpo_cli.core.types import (
    QUESTION,
    Action,
    Hit,
    Passage,
    Question,
    Score,
    SearchCall,
    StopReason,
    question_from_json,
    question_to_json,
)
from dgpo_cli.errors import RetrievalError

MAX_FAILED_SEARCHES = 0.1  # ours, share of episodes; above it the retriever is broken, not the model


def refuse_broken_search(failures: Sequence[str], asked: int) -> None:
    """Raises RetrievalError when too many of `asked` episodes could not search; `failures` holds their causes."""
    if len(failures) > MAX_FAILED_SEARCHES * asked:
        raise RetrievalError(
            f"{len(failures)} of {asked} questions failed to search: {failures[0]}",
            hint="repair the index or server (`dgpo index check`); the same command then goes on",
        )


def attempt_key(question: Question, sample: int) -> str:
    """Identity of an attempt at a question inside one file, and of its random draws."""
    return f"{question.key}/{sample}"


def attempts(questions: Iterable[Question], samples: int) -> dict[str, tuple[Question, int]]:
    """Every question `samples` times in order, as (question, sample number) by `attempt_key`."""
    pairs = ((question, sample) for question in questions for sample in range(samples))
    return {attempt_key(*pair): pair for pair in pairs}


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """A turn that a model wrote, tokens [start, stop) of a trajectory, as its format read it."""

    start: int
    stop: int
    action: Action | None
    content: str  # the query or the answer, empty without an action
    thought: bool  # it begins with a thought
    alone: bool  # it is one thought at most and then one action, and nothing else


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, by whichever model: distillation data, rollouts, evaluation records and chat traces alike."""

    question: Question
    token_ids: tuple[int, ...]
    written: tuple[bool, ...]  # True where a model wrote the token; False for prompt, observations, corrections
    logprobs: tuple[float, ...] | None  # [L] of the model that wrote it, 0.0 where not written; None if unknown
    searches: tuple[SearchCall, ...]
    stop: StopReason
    answer: str | None
    sample: int = 0  # which of several attempts at the same question
    turns: int = 1
    invalid_actions: int = 0
    truncated_observations: int = 0
    escaped_tags: int = 0
    score: Score | None = None
    written_turns: tuple[WrittenTurn, ...] | None = None  # None of an old record: `Codec.with_turns` reads them
    answer_logprob: float | None = None  # mean of the answer's tokens, as in `logprobs`; None if unknown

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.written)} | (
            {len(self.logprobs)} if self.logprobs is not None else set()
        )
        if len(lengths) != 1:
            raise ValueError(f"per-token fields of {self.question.id!r} differ in length: {sorted(lengths)}")
        if self.written and self.written[0]:
            raise ValueError(f"{self.question.id!r}: the first token has no context, so it cannot be written")
        if any(turn.stop > len(self.token_ids) for turn in self.written_turns or ()):
            raise ValueError(f"{self.question.id!r}: a written turn goes beyond the last token")

    @property
    def key(self) -> str:
        return attempt_key(self.question, self.sample)

    @property
    def failed_search(self) -> str | None:
        """The error of a search that ended the episode; not a fault of the model."""
        if self.stop is not StopReason.SEARCH_FAILED:
            return None
        return next((call.error for call in self.searches if call.error is not None), "unknown")

    @property
    def num_written(self) -> int:
        return sum(self.written)

    @property
    def known_turns(self) -> tuple[WrittenTurn, ...]:
        """`written_turns` of a trajectory that has them; one from an old record gets them when it is read."""
        assert self.written_turns is not None, f"the turns of {self.key} were not read"
        return self.written_turns

    @property
    def answers_last(self) -> bool:
        """Whether its turns are searches and then an answer."""
        actions = [turn.action for turn in self.known_turns]
        return bool(actions) and actions == ["search"] * (len(actions) - 1) + ["answer"]

    def spans(self) -> Iterator[tuple[bool, int, int]]:
        """(whether a model wrote them, start, stop) of stretches of tokens: prompt, turn, observation, turn, ..."""
        start = 0
        for written, group in groupby(self.written):
            stop = start + sum(1 for _ in group)
            yield written, start, stop
            start = stop

    def with_score(self, score: Score) -> Trajectory:
        return replace(self, score=score)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable form that `from_json` inverts exactly."""
        question = self.question
        return {
            "question": question_to_json(question),
            "sample": self.sample,
            "token_ids": list(self.token_ids),
            "written": "".join("1" if w else "0" for w in self.written),
            "logprobs": None if self.logprobs is None else list(self.logprobs),
            "searches": [
                {
                    "query": call.query,
                    "seconds": call.seconds,
                    "error": call.error,
                    "hits": [
                        {"id": h.passage.id, "contents": h.passage.contents, "score": h.score, "rank": h.rank}
                        for h in call.hits
                    ],
                }
                for call in self.searches
            ],
            "stop": self.stop.value,
            "answer": self.answer,
            "turns": self.turns,
            "invalid_actions": self.invalid_actions,
            "truncated_observations": self.truncated_observations,
            "escaped_tags": self.escaped_tags,
            "score": None
            if self.score is None
            else {"total": self.score.total, "correct": self.score.correct, "parts": dict(self.score.parts)},
            "written_turns": None if self.written_turns is None else [asdict(turn) for turn in self.written_turns],
            "answer_logprob": self.answer_logprob,
        }

    @classmethod
    def from_json(cls, record: Any) -> Trajectory:
        """Raises ValueError, saying what is wrong, on a record of another form; callers name the file and line."""
        schema.require(record, TRAJECTORY)
        score = record["score"]
        logprobs, turns = record["logprobs"], record.get("written_turns")
        return cls(
            question=question_from_json(record["question"]),
            sample=record["sample"],
            token_ids=tuple(record["token_ids"]),
            written=tuple(c == "1" for c in record["written"]),
            logprobs=None if logprobs is None else tuple(logprobs),
            searches=tuple(
                SearchCall(
                    query=call["query"],
                    hits=tuple(Hit(Passage(h["id"], h["contents"]), h["score"], h["rank"]) for h in call["hits"]),
                    seconds=call["seconds"],
                    error=call["error"],
                )
                for call in record["searches"]
            ),
            stop=StopReason(record["stop"]),
            answer=record["answer"],
            turns=record["turns"],
            invalid_actions=record["invalid_actions"],
            truncated_observations=record["truncated_observations"],
            escaped_tags=record["escaped_tags"],
            score=None if score is None else Score(score["total"], score["correct"], score["parts"]),
            written_turns=None if turns is None else tuple(WrittenTurn(**turn) for turn in turns),
            answer_logprob=record.get("answer_logprob"),
        )


def recorded(row: Any) -> Trajectory:
    """The trajectory of a row that is kept under its key. Raises ValueError, saying what is wrong, on another row."""
    trajectory = Trajectory.from_json(row)
    if row["key"] != trajectory.key:
        raise ValueError(f"`key` is {schema.shown(row['key'])}, and the episode is {schema.shown(trajectory.key)}")
    return trajectory


_SEARCH = schema.record(
    {
        "query": schema.text(),
        "seconds": schema.number(0),
        "error": schema.maybe(schema.text()),
        "hits": schema.list_of(
            schema.record(
                {"id": schema.text(), "contents": schema.text(), "score": schema.number(), "rank": schema.whole(1)}
            )
        ),
    }
)
_SCORE = schema.record({"total": schema.number(), "correct": schema.FLAG, "parts": schema.map_of(schema.number())})
_TURN = schema.record(
    {
        "start": schema.whole(0),
        "stop": schema.whole(0),
        "action": schema.maybe(schema.one_of(*get_args(Action))),
        "content": schema.text(),
        "thought": schema.FLAG,
        "alone": schema.FLAG,
    },
    other=None,
)
_COUNTS = ("sample", "turns", "invalid_actions", "truncated_observations", "escaped_tags")
# Ids must also be below the model's vocabulary size; training checks that, since it knows the model.
TRAJECTORY = schema.record(
    {
        "question": QUESTION,
        "token_ids": schema.whole_numbers(0),
        "written": schema.letters("01"),
        "logprobs": schema.maybe(schema.numbers()),
        "searches": schema.list_of(_SEARCH),
        "stop": schema.one_of(*StopReason),
        "answer": schema.maybe(schema.text()),
        "score": schema.maybe(_SCORE),
    }
    | dict.fromkeys(_COUNTS, schema.whole(0)),
    {"written_turns": schema.maybe(schema.list_of(_TURN)), "answer_logprob": schema.maybe(schema.number())},
)


def write_trajectories(
    file: Path, trajectories: Iterable[Trajectory], meta: Mapping[str, Any], *, kind: str = "trajectories"
) -> None:
    """A file of records, written as a whole; `meta` joins its header, `kind` names its schema."""
    header = {"schema": kind, "version": RecordFile.version} | dict(meta)
    write_jsonl_atomic(file, [header, *({"key": t.key} | t.to_json() for t in trajectories)])
