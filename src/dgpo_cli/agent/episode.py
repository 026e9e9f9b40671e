"""One running episode: the tokens written and read, and the searches so far."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from dgpo_cli.core.trajectory import Trajectory, WrittenTurn, attempt_key
from dgpo_cli.core.types import Question, SearchCall, StopReason
from dgpo_cli.engine.base import Event, SlotId
from dgpo_cli.formats.base import Turn


@dataclass(slots=True)
class RunningEpisode:
    index: int  # place in the call's list of questions
    question: Question
    sample: int
    slot: SlotId = -1
    token_ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    turn_start: int = 0  # index of the current turn's first written token
    searches: list[SearchCall] = field(default_factory=list)
    written_turns: list[WrittenTurn] = field(default_factory=list)
    invalid_actions: int = 0
    truncated_observations: int = 0
    escaped_tags: int = 0
    query: str | None = None  # searched for, without a result yet
    invalid_since: set[str] = field(default_factory=set)  # texts of the turns since the last one that had an action
    stop: StopReason | None = None
    answer: str | None = None
    answer_logprob: float | None = None
    _text: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    @property
    def key(self) -> str:
        return attempt_key(self.question, self.sample)

    @property
    def done(self) -> bool:
        return self.stop is not None

    def read(self, ids: tuple[int, ...]) -> None:
        """Append tokens that no model wrote: the prompt, an observation, a correction."""
        self.token_ids.extend(ids)
        self.written.extend([False] * len(ids))
        self.logprobs.extend([0.0] * len(ids))
        self.turn_start = len(self.token_ids)

    def write(self, event: Event) -> None:
        self.token_ids.extend(event.token_ids)
        self.written.extend([True] * len(event.token_ids))
        self.logprobs.extend(event.logprobs)

    def end_turn(self, turn: Turn) -> None:
        """End the current turn, which was parsed as `turn`."""
        self.written_turns.append(turn.at(self.turn_start, len(self.token_ids)))

    def comes_again(self, turn: Turn) -> bool:
        """Whether a turn without an action was written since the last action already, in whatever cycle."""
        if turn.action is not None:
            self.invalid_since.clear()
            return False
        text = turn.kept.strip()
        known = text in self.invalid_since
        self.invalid_since.add(text)
        return known

    def give(self, answer: str, tokens: slice) -> None:
        """Keep the answer, which stands in these tokens of the current turn."""
        given = self.logprobs[self.turn_start :][tokens]
        known = [p for p in given if p is not None]
        self.answer = answer
        self.answer_logprob = sum(known) / len(known) if len(known) == len(given) > 0 else None

    @property
    def turns(self) -> int:
        return len(self.written_turns)

    @property
    def turn(self) -> list[int]:
        """The tokens written in the current turn."""
        return self.token_ids[self.turn_start :]

    def new_text(self, written: bytes) -> str:
        return self._text.decode(written)

    def trajectory(self) -> Trajectory:
        assert self.stop is not None, f"{self.key} still runs"
        logprobs = tuple(p for p in self.logprobs if p is not None)
        return Trajectory(
            question=self.question,
            sample=self.sample,
            token_ids=tuple(self.token_ids),
            written=tuple(self.written),
            logprobs=logprobs if len(logprobs) == len(self.logprobs) else None,
            searches=tuple(self.searches),
            stop=self.stop,
            answer=self.answer,
            turns=self.turns,
            invalid_actions=self.invalid_actions,
            truncated_observations=self.truncated_observations,
            escaped_tags=self.escaped_tags,
            written_turns=tuple(self.written_turns),
            answer_logprob=self.answer_logprob,
        )
