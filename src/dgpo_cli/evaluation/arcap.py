"""ARCap, the paper's measure of what an agent can do apart (arXiv 2508.20324): reading, thinking, asking.

Asking (hits of the first query, executed searches) is read off the ordinary episodes. This module is the reading part:
the question's gold passages are given as one observation and the model answers, once with room to think and once
without. The paper published neither its texts nor how its context was made, so all of this is ours and is stated in
docs/evaluation.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dgpo_cli.agent.episode import RunningEpisode
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.progress import Pace, Progress
from dgpo_cli.core.text import text_key
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Passage, Question, SearchCall, StopReason
from dgpo_cli.engine.base import Engine, Sampling, TurnEnd
from dgpo_cli.formats.base import Mode, Turn
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec

MODES: tuple[Mode, ...] = ("direct", "think")


def gold_protocol(protocol: Protocol, mode: Mode) -> Protocol:
    """The agent's texts for a mode. A model that was trained on a prompt without instructions keeps its prompt.

    Where turns are no messages of their own, the beginning of the answer stands behind the results.
    """
    form = protocol.agent_format
    return replace(
        protocol,
        name=f"{protocol.name}, gold context, {mode}",
        prompt=form.reading_prompt(mode) if form.instructs(protocol.prompt) else protocol.prompt,
        observation=protocol.observation + ("" if form.in_messages else form.begun(mode)),
    )


def gold_codec(codec: Codec, mode: Mode) -> Codec:
    return Codec(codec.tokenizer, gold_protocol(codec.protocol, mode))


@dataclass(frozen=True, slots=True)
class GoldContext:
    """The questions of a set that can be asked with their gold passages."""

    passages: Mapping[str, tuple[Passage, ...]]  # by question id, in the question's order
    without_gold: int  # questions that name no gold passage
    incomplete: int  # questions with a gold passage that the corpus does not hold
    missing_passages: int  # of those: distinct passages

    def to_json(self) -> dict[str, int]:
        return {
            "questions": len(self.passages),
            "without_gold": self.without_gold,
            "incomplete": self.incomplete,
            "missing_passages": self.missing_passages,
        }


def find_gold(questions: Sequence[Question], corpus: Iterable[Passage]) -> GoldContext:
    """Gold passages by id, or by title where a question names only titles: the first of that title in the corpus."""
    ids = {key for question in questions if question.supporting_ids for key in question.gold_keys}
    titles = {key for question in questions if not question.supporting_ids for key in question.gold_keys}
    by_id: dict[str, Passage] = {}
    by_title: dict[str, Passage] = {}
    if ids or titles:
        for passage in corpus:
            if ids and (key := text_key(passage.id)) in ids:
                by_id.setdefault(key, passage)
            if titles and (key := text_key(passage.title)) in titles:
                by_title.setdefault(key, passage)
    found: dict[str, tuple[Passage, ...]] = {}
    missing: set[tuple[bool, str]] = set()
    without = incomplete = 0
    for question in questions:
        by_key = by_id if question.supporting_ids else by_title
        keys = dict.fromkeys(map(text_key, question.supporting_ids or question.supporting_titles))
        lost = {(bool(question.supporting_ids), key) for key in keys if key not in by_key}
        missing |= lost
        without += not keys
        incomplete += bool(lost)
        if keys and not lost:
            found[question.id] = tuple(by_key[key] for key in keys)
    return GoldContext(found, without, incomplete, len(missing))


class GoldReader:
    """Asks questions with their gold passages: prompt, one observation, one turn, no search.

    `codec` is of the mode's own texts, by `gold_codec`.
    A trajectory keeps the passages as one search with an empty query, so that it is graded like any other.
    """

    def __init__(
        self, gold: GoldContext, mode: Mode, *, engine: Engine, codec: Codec, settings: RolloutSettings, seed: int = 0
    ) -> None:
        self._gold, self._mode = gold, mode
        self._engine, self._codec, self._settings, self._seed = engine, codec, settings, seed

    def with_turns(self, trajectory: Trajectory) -> Trajectory:
        """An old record, with its turn parsed."""
        if trajectory.written_turns is not None:
            return trajectory
        ended = trajectory.stop is not StopReason.MAX_TOKENS
        turns = [
            self._parse(trajectory.token_ids[start:stop], ended=ended).at(start, stop)
            for written, start, stop in trajectory.spans()
            if written
        ]
        return replace(trajectory, written_turns=tuple(turns))

    def _parse(self, turn: Sequence[int], *, ended: bool) -> Turn:
        """The one turn, with the beginning that was written for the model."""
        form = self._codec.format
        return form.parse(form.begun(self._mode) + self._codec.decode(turn), ended=ended)

    def run(
        self, pairs: Sequence[tuple[Question, int]], /, *, progress: Progress | None = None
    ) -> Iterator[Trajectory]:
        """Trajectories of (question, sample) pairs, each as soon as it is finished; `settings.wave` run at once."""
        pace, finished, written = Pace(progress, len(pairs)), 0, 0
        queue = deque(RunningEpisode(index, question, sample) for index, (question, sample) in enumerate(pairs))
        running: dict[int, RunningEpisode] = {}
        try:
            while queue or running:
                ended = []
                while queue and len(running) < self._settings.wave:
                    episode = queue.popleft()
                    if self._open(episode):
                        running[episode.slot] = episode
                    else:
                        ended.append(episode)
                for event in self._engine.step():
                    episode = running[event.slot]
                    episode.write(event)
                    written += len(event.token_ids)
                    if event.end is not None:
                        self._end(episode, event.end)
                        del running[event.slot]
                        self._engine.close(event.slot)
                        ended.append(episode)
                yield from (episode.trajectory() for episode in ended)
                finished += len(ended)
                pace.tell(finished, written)
        finally:
            for slot in running:
                self._engine.close(slot)

    def _open(self, episode: RunningEpisode) -> bool:
        """False for a prompt that leaves no room; the passages are cut where they leave none for an answer."""
        capacity = min(self._engine.capacity, self._settings.max_tokens)
        passages = self._gold.passages[episode.question.id]
        hits = tuple(Hit(passage, 0.0, rank) for rank, passage in enumerate(passages, start=1))
        episode.searches.append(SearchCall("", hits))
        prompt = self._codec.prompt_ids(episode.question.text)
        episode.read(prompt.ids)
        episode.escaped_tags += prompt.escaped
        asked, begun = self._around(episode.question)
        room = capacity - len(prompt.ids) - len(asked) - len(begun) - min(self._settings.max_new_tokens, capacity // 4)
        context = self._codec.observation_ids(passages, max(room, 1))
        ids = (*asked, *context.ids, *begun)
        if len(prompt.ids) + len(ids) >= capacity:
            episode.stop = StopReason.MAX_TOKENS
            return False
        episode.read(ids)
        episode.escaped_tags += context.escaped
        episode.truncated_observations += context.truncated
        sampling = Sampling(
            temperature=self._settings.temperature,
            max_new_tokens=self._settings.max_new_tokens,
            stop=self._codec.format.stops,
            seed=self._seed,
            key=f"{episode.key}/{self._mode}",
        )
        episode.slot = self._engine.open(episode.token_ids, sampling)
        return True

    def _around(self, question: Question) -> tuple[list[int], list[int]]:
        """Where turns are messages, what the model says before the results, and the beginning of its answer."""
        form = self._codec.format
        if not form.in_messages:
            return [], []
        asked = self._codec.text_ids(form.write("", "search", question.text))
        return asked, self._codec.text_ids(form.begun(self._mode))

    def _end(self, episode: RunningEpisode, end: TurnEnd) -> None:
        turn = self._parse(episode.turn, ended=end is TurnEnd.STOP)
        episode.end_turn(turn)
        if turn.action == "answer":
            episode.answer, episode.stop = turn.content, StopReason.ANSWERED
        elif end is TurnEnd.LENGTH:
            episode.stop = StopReason.MAX_TOKENS
        else:
            episode.invalid_actions += turn.action is None
            episode.stop = StopReason.MAX_TURNS
