"""Episodes that are asked for and given up at any time, for several people at once: the loop behind a server.

A search begins as soon as its query is written, and holds up nobody else. Which episodes share a step depends on the
clock, so that sums may differ in their last bits from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dgpo_cli.agent.episode import RunningEpisode
from dgpo_cli.agent.loop import Listener, Rollout
from dgpo_cli.core.types import SearchCall, StopReason
from dgpo_cli.engine.base import Event, Sampling

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent

LookUp = Callable[[str], Future[SearchCall]]
"""Begins a search. Whoever steps is to be woken when it is done; a failure is a call with its `error`."""


@dataclass(slots=True)
class AskedEpisode(RunningEpisode):
    """An episode with settings of its own where the one who asked gave them."""

    temperature: float | None = None
    seed: int | None = None
    most: int | None = None  # tokens that it may write, over all turns

    @property
    def left(self) -> int | None:
        return None if self.most is None else self.most - sum(self.written)


class LiveRollout(Rollout):
    """Of an agent's episodes, each an AskedEpisode; the agent's own retriever is asked by whoever gave `look_up`."""

    def __init__(self, agent: Agent, look_up: LookUp, on_event: Listener) -> None:
        super().__init__(agent.engine, agent.codec, agent.retriever, agent.settings, agent.seed, on_event)
        self._begin = look_up
        self._begun: dict[int, Future[SearchCall]] = {}  # by slot

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is answered."""
        return min(self.settings.max_prompt_tokens, self.capacity - 1)

    @property
    def moves(self) -> bool:
        """Whether a step would do anything: somebody writes, can be opened, or has an answer to read."""
        free = len(self.by_slot) < self.settings.wave
        writing = len(self.by_slot) > len(self._begun)
        return writing or (bool(self.queue) and free) or any(answer.done() for answer in self._begun.values())

    def drop(self, index: int) -> None:
        """Forget an episode that nobody waits for; one that is not here is none."""
        self.queue = type(self.queue)(episode for episode in self.queue if episode.index != index)
        for slot, episode in list(self.by_slot.items()):
            if episode.index == index:
                del self.by_slot[slot]
                self._begun.pop(slot, None)
                self.engine.close(slot)

    def _sampling(self, episode: RunningEpisode) -> Sampling:
        usual = super()._sampling(episode)
        assert isinstance(episode, AskedEpisode)
        given = {"temperature": episode.temperature, "seed": episode.seed}
        return replace(usual, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def _kept(self, episode: RunningEpisode, event: Event) -> tuple[Event, StopReason | None]:
        event, stop = super()._kept(episode, event)
        assert isinstance(episode, AskedEpisode)
        left, count = episode.left, len(event.token_ids)
        if left is None or count < left or (count == left and (stop or event.end) is not None):
            return event, stop
        return Event(event.slot, event.token_ids[:left], event.logprobs[:left]), StopReason.MAX_TOKENS

    def _read_due(self) -> None:
        for slot, answer in list(self._begun.items()):
            if answer.done():
                del self._begun[slot]
                self._read(self.by_slot[slot], answer.result())

    def _look_up(self, stepped: bool) -> None:
        waiting, self.waiting = self.waiting, []
        for episode in waiting:
            assert episode.query is not None
            self._begun[episode.slot] = self._begin(episode.query)
