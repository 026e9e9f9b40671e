"""A model that writes questions, and answers them with their passages, without, and with one of two."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dgpo_cli.core.progress import Pace, Progress
from dgpo_cli.core.text import contains_answer, exact_match, normalize_answer, share_phrase
from dgpo_cli.core.types import Passage
from dgpo_cli.engine.base import Engine, Sampling, SlotId
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.make_questions.candidate import Candidate, Fate, MadeKind, QuestionTask, subject
from dgpo_cli.make_questions.names import asked_for
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.make_questions.texts import (
    ANSWER,
    QUESTION,
    answer_in,
    asking,
    asking_for_question,
    question_and_answer,
    question_in,
)
from dgpo_cli.models.codec import Codec
from dgpo_cli.retrieval.corpus.split import sentences

# A request is a user message as it stands, in the model's chat template where it has one.
PLAIN = Protocol(name="a plain request", prompt="{question}", correction="", add_question_mark=False)
_NEXT = (f"\n{QUESTION}", "\nPassage")  # where a reply that should have ended goes on with another
_BLANK_LINE = ("\n\n",)
_BESIDE = 12  # ours, words that an answer may have besides the expected one: small models answer by a sentence


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A text that a model continues."""

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

    def replies(self, requests: Sequence[PlainRequest], progress: Progress | None = None) -> list[str | None]:
        """The reply to each, without its beginning; None where the request leaves no room for one."""
        found: list[str | None] = [None] * len(requests)
        waiting = deque(
            (place, ids) for place, request in enumerate(requests) if (ids := self._prompt(request)) is not None
        )
        running: dict[SlotId, _OpenRequest] = {}
        pace, finished, tokens = Pace(progress, len(waiting)), 0, 0
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    place, ids = waiting.popleft()
                    running[self._engine.open(ids, self._sampling(requests[place]))] = _OpenRequest(place)
                for event in self._engine.step():
                    running[event.slot].written += event.token_ids
                    tokens += len(event.token_ids)
                    if event.end is not None:
                        ended = running.pop(event.slot)
                        self._engine.close(event.slot)
                        found[ended.place] = self._codec.decode(ended.written)
                        finished += 1
                pace.tell(finished, tokens)
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

    def write(self, tasks: Sequence[QuestionTask], progress: Progress | None = None) -> list[Candidate | Fate]:
        """A question for each task, or why there is none."""
        answers = [_chosen_answer(task, self._settings.seed) for task in tasks]
        requests = [
            PlainRequest(
                f"write {task.key}",
                asking_for_question(task, answer),
                QUESTION,
                self._settings.temperature,
                self._settings.max_question_tokens,
                _NEXT if answer is None else _BLANK_LINE,
            )
            for task, answer in zip(tasks, answers, strict=True)
        ]
        replies = self._asker.replies(requests, progress)
        return [_read(*each) for each in zip(tasks, answers, replies, strict=True)]

    def check(self, candidates: Sequence[Candidate], progress: Progress | None = None) -> list[Fate | None]:
        """Why each falls: it is not answered from its passages, or it is without them or from one of two."""
        fates: list[Fate | None] = [None] * len(candidates)
        for why, wanted in ((Fate.UNREADABLE, True), (Fate.KNOWN, False), (Fate.ONE_IS_ENOUGH, False)):
            asked = [
                (place, passages)
                for place, candidate in enumerate(candidates)
                if fates[place] is None
                for passages in _shown(why, candidate.gold)
            ]
            right = self._answers([(candidates[place], passages) for place, passages in asked], progress)
            for (place, _), is_right in zip(asked, right, strict=True):
                if is_right is not wanted:
                    fates[place] = why
        return fates

    def _answers(self, asked: Sequence[tuple[Candidate, Sequence[Passage]]], progress: Progress | None) -> list[bool]:
        """Whether the teacher's answer to each, with the passages, is the one that is expected."""
        requests = [
            PlainRequest(
                f"answer {candidate.text}",
                asking(candidate.text, passages),
                ANSWER,
                0.0,
                self._settings.max_answer_tokens,
                _BLANK_LINE,
            )
            for candidate, passages in asked
        ]
        replies = self._asker.replies(requests, progress)
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


def _chosen_answer(task: QuestionTask, seed: int) -> str | None:
    """A name, a date or a number of the last passage that neither says what a passage is about nor links them."""
    link = task.link
    known = [subject(passage) for passage in task.gold] + ([] if link is None else [link.name])
    found = [span.text for sentence in sentences(task.gold[-1].text) for span in asked_for(sentence)]
    usable = [text for text in dict.fromkeys(found) if not any(share_phrase(text, name) for name in known)]
    return random.Random(f"answer {seed} {task.key}").choice(usable) if usable else None


def _read(task: QuestionTask, answer: str | None, reply: str | None) -> Candidate | Fate:
    if reply is None:
        return Fate.TOO_LONG
    question = None if answer is None else question_in(reply)
    written = question_and_answer(reply) if answer is None else question and (question, answer)
    if not written:
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
