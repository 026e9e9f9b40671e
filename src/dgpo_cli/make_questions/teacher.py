"""A model that writes questions, and answers them with their passages, without, and with one of two."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dgpo_cli.core.text import contains_answer, exact_match, normalize_answer
from dgpo_cli.core.types import Passage
from dgpo_cli.engine.base import Engine, Sampling, SlotId
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.make_questions.candidate import Candidate, Fate, MadeKind, QuestionTask
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.make_questions.texts import ANSWER, QUESTION, answer_in, asking, asking_for_question, question_and_answer
from dgpo_cli.models.codec import Codec

# A request is a user message as it stands, in the model's chat template where it has one.
PLAIN = Protocol(name="a plain request", prompt="{question}", correction="", add_question_mark=False)
_BESIDE = 4  # ours, words that an answer may have beside the one that is expected


@dataclass(frozen=True, slots=True)
class PlainRequest:
    key: str
    text: str
    begun: str  # how the reply begins
    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...]


@dataclass(slots=True)
class _OpenRequest:
    place: int  # of its request
    written: list[int] = field(default_factory=list)


class PlainAsker:
    """Replies of a model to plain requests, `at_once` of them open. The codec is one of PLAIN."""

    def __init__(self, engine: Engine, codec: Codec, *, at_once: int, max_tokens: int, seed: int) -> None:
        self._engine, self._codec, self._at_once, self._seed = engine, codec, at_once, seed
        self._capacity = min(engine.capacity, max_tokens)

    def replies(self, requests: Sequence[PlainRequest]) -> list[str | None]:
        """The reply to each, without its beginning; None where the request leaves no room for one."""
        found: list[str | None] = [None] * len(requests)
        waiting = deque(
            (place, ids) for place, request in enumerate(requests) if (ids := self._prompt(request)) is not None
        )
        running: dict[SlotId, _OpenRequest] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    place, ids = waiting.popleft()
                    running[self._engine.open(ids, self._sampling(requests[place]))] = _OpenRequest(place)
                for event in self._engine.step():
                    running[event.slot].written += event.token_ids
                    if event.end is not None:
                        ended = running.pop(event.slot)
                        self._engine.close(event.slot)
                        found[ended.place] = self._codec.decode(ended.written)
        finally:
            for slot in running:
                self._engine.close(slot)
        return found

    def _prompt(self, request: PlainRequest) -> list[int] | None:
        ids = [*self._codec.prompt_ids(request.text).ids, *self._codec.text_ids(request.begun)]
        return ids if len(ids) + request.max_new_tokens <= self._capacity else None

    def _sampling(self, request: PlainRequest) -> Sampling:
        return Sampling(request.temperature, request.max_new_tokens, request.stop, self._seed, request.key)


class Teacher:
    """Writes at a temperature and answers greedily. What it says depends on the seed and what it is asked alone."""

    def __init__(self, asker: PlainAsker, settings: MakeQuestionsSettings) -> None:
        self._asker, self._settings = asker, settings

    def write(self, tasks: Sequence[QuestionTask]) -> list[Candidate | Fate]:
        requests = [
            PlainRequest(
                f"write {task.key}",
                asking_for_question(task),
                QUESTION,
                self._settings.temperature,
                self._settings.max_question_tokens,
                ("\n\n",),
            )
            for task in tasks
        ]
        return [_read(task, reply) for task, reply in zip(tasks, self._asker.replies(requests), strict=True)]

    def check(self, candidates: Sequence[Candidate]) -> list[Fate | None]:
        fates: list[Fate | None] = [None] * len(candidates)
        for why, wanted in ((Fate.UNREADABLE, True), (Fate.KNOWN, False), (Fate.ONE_IS_ENOUGH, False)):
            asked = [
                (place, passages)
                for place, candidate in enumerate(candidates)
                if fates[place] is None
                for passages in _shown(why, candidate.gold)
            ]
            right = self._answers([(candidates[place], passages) for place, passages in asked])
            for (place, _), is_right in zip(asked, right, strict=True):
                if is_right is not wanted:
                    fates[place] = why
        return fates

    def _answers(self, asked: Sequence[tuple[Candidate, Sequence[Passage]]]) -> list[bool]:
        """Whether the teacher's answer to each, with the passages, is the one that is expected."""
        requests = [
            PlainRequest(
                f"answer {candidate.text}",
                asking(candidate.text, passages),
                ANSWER,
                0.0,
                self._settings.max_answer_tokens,
                ("\n\n",),
            )
            for candidate, passages in asked
        ]
        replies = self._asker.replies(requests)
        return [
            reply is not None and _is_answer(answer_in(reply), candidate.answer)
            for (candidate, _), reply in zip(asked, replies, strict=True)
        ]


def _shown(why: Fate, gold: tuple[Passage, ...]) -> list[tuple[Passage, ...]]:
    """What the teacher gets to read in turn, to see whether a question falls for a reason."""
    if why is Fate.UNREADABLE:
        return [gold]
    if why is Fate.KNOWN:
        return [()]
    return [(passage,) for passage in gold] if len(gold) > 1 else []


def _read(task: QuestionTask, reply: str | None) -> Candidate | Fate:
    if reply is None:
        return Fate.TOO_LONG
    written = question_and_answer(reply)
    if written is None:
        return Fate.UNWRITTEN
    link = task.link
    hidden = link.name if link is not None and link.is_title else ""
    return Candidate(MadeKind.ONE_HOP if link is None else MadeKind.TWO_HOP, *written, task.gold, hidden=hidden)


def _is_answer(given: str, expected: str) -> bool:
    """Equal as evaluation compares them, or the expected answer within a few words more."""
    if exact_match(given, [expected]):
        return True
    words = len(normalize_answer(given).split()) - len(normalize_answer(expected).split())
    return words <= _BESIDE and contains_answer(given, [expected])
