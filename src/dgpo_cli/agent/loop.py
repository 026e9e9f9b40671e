"""The think / search / answer loop over many questions at once (Search-R1, arXiv 2503.09516, algorithm 1).

Deviations from the reference: a turn stops at its closing tag while it is generated (the reference generates to the
limit and cuts), sampled ids are kept (it decodes and tokenizes again), an episode that runs out of room ends as
`max_tokens` (it drops the oldest context), and a failed search ends the episode instead of becoming text. Where
`stop_repeats` is set, an episode ends in the turn that repeats itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Self

from dgpo_cli.agent import events
from dgpo_cli.agent.episode import RunningEpisode
from dgpo_cli.agent.repeats import EVERY, loop_end
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.progress import Pace, Progress
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question, SearchCall, StopReason
from dgpo_cli.engine.base import Engine, Event, Sampling, TurnEnd
from dgpo_cli.errors import RetrievalError
from dgpo_cli.models.codec import Codec
from dgpo_cli.retrieval.base import Retriever

Listener = Callable[[events.Event], None]


def run_episodes(
    questions: Sequence[tuple[Question, int]],
    *,
    engine: Engine,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
    seed: int = 0,
    on_event: Listener | None = None,
    progress: Progress | None = None,
) -> Iterator[Trajectory]:
    """Trajectories in the order of `questions`, each a (question, sample index) pair; see `finished_episodes`."""
    made: dict[int, Trajectory] = {}
    finished = _finished(questions, engine, codec, retriever, settings, seed, on_event, progress)
    with closing(finished):
        for place in range(len(questions)):
            while place not in made:
                index, trajectory = next(finished)
                made[index] = trajectory
            yield made.pop(place)
        next(finished, None)  # ends when closed


def finished_episodes(
    questions: Sequence[tuple[Question, int]],
    *,
    engine: Engine,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
    seed: int = 0,
    on_event: Listener | None = None,
    progress: Progress | None = None,
) -> Iterator[Trajectory]:
    """Trajectories of (question, sample index) pairs, each as soon as it is finished.

    `settings.wave` episodes are open at once; where one ends the next begins. Which episodes share a step depends on
    token counts alone, so the same call makes the same trajectories. An episode's draws depend on its seed and key, so
    a call with some of the questions makes the same ones, up to the last bits of sums over another batch.
    """
    with closing(_finished(questions, engine, codec, retriever, settings, seed, on_event, progress)) as finished:
        for _, trajectory in finished:
            yield trajectory


def _finished(
    questions: Sequence[tuple[Question, int]],
    engine: Engine,
    codec: Codec,
    retriever: Retriever,
    settings: RolloutSettings,
    seed: int,
    on_event: Listener | None,
    progress: Progress | None,
) -> Generator[tuple[int, Trajectory]]:
    """(place in `questions`, trajectory) of each episode that got finished."""
    pace = Pace(progress, len(questions))
    with Rollout(engine, codec, retriever, settings, seed, on_event) as rollout:
        rollout.queue.extend(
            RunningEpisode(place, question, sample) for place, (question, sample) in enumerate(questions)
        )
        while rollout.queue or rollout.by_slot:
            rollout.step()
            while rollout.ended:
                episode = rollout.ended.popleft()
                yield episode.index, episode.trajectory()
            pace.tell(rollout.finished, rollout.written)


@dataclass(frozen=True, slots=True)
class _Search:
    """Queries that are answered while others write; their episodes go on when those are at token `due`."""

    due: int
    episodes: Sequence[RunningEpisode]
    answers: Future[list[SearchCall]]


class Rollout:
    """Episodes that share an engine; those in `queue` are opened where a place is free."""

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        retriever: Retriever,
        settings: RolloutSettings,
        seed: int,
        on_event: Listener | None,
    ) -> None:
        self.engine, self.codec = engine, codec
        self.retriever, self.settings, self.seed, self.on_event = retriever, settings, seed, on_event
        self.capacity = min(engine.capacity, settings.max_tokens)
        self.queue: deque[RunningEpisode] = deque()
        self.by_slot: dict[int, RunningEpisode] = {}
        self.waiting: list[RunningEpisode] = []  # with a query that nobody answers yet
        self.searching: deque[_Search] = deque()
        self.ended: deque[RunningEpisode] = deque()  # finished and not taken yet
        self.tokens = 0  # that an episode without a stop would have written
        self.finished = self.written = 0  # episodes, and tokens of all of them
        self.searcher = ThreadPoolExecutor(1, thread_name_prefix="search") if settings.overlap_steps else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.searcher is not None:
            self.searcher.shutdown(cancel_futures=True)
        for slot in list(self.by_slot):
            self.engine.close(slot)

    def step(self) -> None:
        """Run a step of the engine and handle its events."""
        while self.queue and len(self.by_slot) < self.settings.wave:
            self._open(self.queue.popleft())
        self._read_due()
        stepped = self.engine.step()
        self.tokens += max((len(event.token_ids) for event in stepped), default=1)
        for event in stepped:
            episode = self.by_slot[event.slot]
            event, stop = self._kept(episode, event)
            episode.write(event)
            self.written += len(event.token_ids)
            if self.on_event is not None:
                text = episode.new_text(b"".join(map(self.codec.token_bytes, event.token_ids)))
                if text:
                    self.on_event(events.TokenText(episode.index, text))
            if stop is not None:
                episode.end_turn(self.codec.parse(episode.turn, ended=False))
                episode.invalid_actions += 1
                self._finish(episode, stop)
            elif event.end is not None:
                self._end_turn(episode, event.end)
        self._look_up(bool(stepped))

    def _read_due(self) -> None:
        """Let the episodes go on whose search was begun so many tokens ago."""
        while self.searching and self.searching[0].due <= self.tokens:
            self._go_on(self.searching.popleft())

    def _look_up(self, stepped: bool) -> None:
        """Search, if enough episodes wait for it; where nobody writes, wait for what was begun."""
        # Searching in large batches keeps retrieval cheap; a quarter of the open episodes keeps the others from idling.
        if self.waiting and (not stepped or 4 * len(self.waiting) >= len(self.by_slot)):
            self._search()
        elif not stepped and self.searching:
            self._go_on(self.searching.popleft())

    def _open(self, episode: RunningEpisode) -> None:
        prompt = self.codec.prompt_ids(episode.question.text)
        episode.read(prompt.ids)
        episode.escaped_tags += prompt.escaped
        if len(prompt.ids) > min(self.settings.max_prompt_tokens, self.capacity - 1):
            self._end(episode, StopReason.MAX_TOKENS)
            return
        episode.slot = self.engine.open(prompt.ids, self._sampling(episode))
        self.by_slot[episode.slot] = episode

    def _sampling(self, episode: RunningEpisode) -> Sampling:
        return Sampling(
            temperature=self.settings.temperature,
            max_new_tokens=self.settings.max_new_tokens,
            stop=self.codec.format.stops,
            seed=self.seed,
            key=episode.key,
        )

    def _kept(self, episode: RunningEpisode, event: Event) -> tuple[Event, StopReason | None]:
        """The part of an event up to a loop, and why the episode ends with it, if it does."""
        seen, new = len(episode.token_ids) - episode.turn_start, len(event.token_ids)
        if not self.settings.stop_repeats or (seen + new) // EVERY == seen // EVERY:
            return event, None
        count = loop_end([*episode.turn, *event.token_ids], seen)
        if count is None:
            return event, None
        kept = count - seen
        return Event(event.slot, event.token_ids[:kept], event.logprobs[:kept]), StopReason.LOOP

    def _end_turn(self, episode: RunningEpisode, end: TurnEnd) -> None:
        turn = self.codec.parse(episode.turn, ended=end is TurnEnd.STOP)
        episode.end_turn(turn)
        repeated = self.settings.stop_repeats and episode.comes_again(turn)
        final = episode.turns > self.settings.max_turns
        if turn.action == "answer":
            episode.give(turn.content, self.codec.answer_tokens(episode.turn, turn))
            self._finish(episode, StopReason.ANSWERED)
        elif end is TurnEnd.LENGTH and len(episode.token_ids) >= self.capacity:
            self._finish(episode, StopReason.MAX_TOKENS)
        elif turn.action == "search" and not final:
            episode.query = turn.content
            self.waiting.append(episode)
            self._tell(events.SearchStarted(episode.index, turn.content))
        else:
            episode.invalid_actions += turn.action is None
            if final or repeated:
                self._finish(episode, StopReason.MAX_TURNS if final else StopReason.REPEATED_TURN)
            else:
                correction = self.codec.correction_ids(after=episode.turn[-1])
                self._tell(events.Correction(episode.index, self.codec.protocol.correction))
                self._extend(episode, correction.ids)

    def _search(self) -> None:
        waiting, self.waiting = self.waiting, []
        # The order of turn ends depends on the batch; the order of queries must not.
        waiting.sort(key=lambda episode: episode.index)
        queries = [episode.query or "" for episode in waiting]
        if self.searcher is not None:
            answers = self.searcher.submit(self._calls, queries)
        else:
            answers = Future()
            answers.set_result(self._calls(queries))
        self.searching.append(_Search(self.tokens + self.settings.overlap_steps, waiting, answers))

    def _calls(self, queries: Sequence[str]) -> list[SearchCall]:
        started = time.perf_counter()
        try:
            asked = [*dict.fromkeys(queries)]  # episodes of one question often ask the same
            found = dict(zip(asked, self.retriever.search(asked, self.settings.top_k), strict=True))
        except RetrievalError as error:
            return [SearchCall(query, (), time.perf_counter() - started, error.message) for query in queries]
        seconds = (time.perf_counter() - started) / len(queries)
        return [SearchCall(query, tuple(found[query]), seconds) for query in queries]

    def _go_on(self, search: _Search) -> None:
        for episode, call in zip(search.episodes, search.answers.result(), strict=True):
            self._read(episode, call)

    def _read(self, episode: RunningEpisode, call: SearchCall) -> None:
        """Give an episode what its search found."""
        episode.searches.append(call)
        episode.query = None
        self._tell(events.SearchDone(episode.index, call))
        if call.error is not None:
            self._finish(episode, StopReason.SEARCH_FAILED)
            return
        passages = [hit.passage for hit in call.hits]
        limit = self.settings.max_observation_tokens
        encoded = self.codec.observation_ids(passages, limit, after=episode.token_ids[-1])
        episode.escaped_tags += encoded.escaped
        episode.truncated_observations += encoded.truncated
        self._extend(episode, encoded.ids)

    def _extend(self, episode: RunningEpisode, ids: tuple[int, ...]) -> None:
        """Append the next text to read; an episode without room for it and an answer ends here."""
        if len(episode.token_ids) + len(ids) >= self.capacity:
            self._finish(episode, StopReason.MAX_TOKENS)
            return
        episode.read(ids)
        self.engine.extend(episode.slot, ids)

    def _finish(self, episode: RunningEpisode, stop: StopReason) -> None:
        del self.by_slot[episode.slot]
        self.engine.close(episode.slot)
        self._end(episode, stop)

    def _end(self, episode: RunningEpisode, stop: StopReason) -> None:
        episode.stop = stop
        self.finished += 1
        self.ended.append(episode)
        self._tell(events.Finished(episode.index, episode.trajectory()))

    def _tell(self, event: events.Event) -> None:
        if self.on_event is not None:
            self.on_event(event)
