"""An agent for many people at once: one thread steps its engine, and each question hears of its own episode.

Questions are opened where a place is free, in the order in which they came. What its client no longer waits for is
dropped, wherever it is. A failure of the engine reaches everyone whose episode it held; the next question finds a fresh
one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from dgpo_cli.agent.events import Event, Finished
from dgpo_cli.agent.live import AskedEpisode, LiveRollout
from dgpo_cli.core.types import Hit, Question, SearchCall
from dgpo_cli.errors import DgpoError, RetrievalError
from dgpo_cli.models.codec import Codec
from dgpo_cli.serving.door import ReplyRefused
from dgpo_cli.serving.metrics import Metrics

if TYPE_CHECKING:
    from dgpo_cli.agent.agent import Agent

Search = Callable[[Sequence[str], int], Awaitable[list[list[Hit]]]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asking:
    """A question, and what its client set; None is the server's own setting."""

    text: str
    temperature: float | None = None
    seed: int | None = None
    most: int | None = None  # tokens that the model may write, over all turns


@dataclass(frozen=True, slots=True)
class Accepted:
    """The question fits; its episode is open or waits for a place."""


Told = Accepted | Event | ReplyRefused


@dataclass(slots=True)
class Running:
    """The episode of one question, as its client follows it; leaving the block gives it up."""

    asker: SharedAgent
    number: int
    asking: Asking
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    started: float = field(default_factory=time.perf_counter)

    def tell(self, event: Told) -> None:
        with suppress(RuntimeError):  # the server's loop has ended
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def next(self) -> Accepted | Event:
        """The next event; nothing follows Finished. Raises ReplyRefused."""
        event = await self.events.get()
        if isinstance(event, ReplyRefused):
            raise event
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.asker.drop(self.number)


class SharedAgent:
    """`start` before the first question, `close` at the end; both and `ask` in the server's loop."""

    def __init__(
        self,
        agent: Agent,
        search: Search,
        most_waiting: int,
        metrics: Metrics,
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        """`wake` lets a step return that waits for another program."""
        self._agent, self._search, self._metrics, self._wake = agent, search, metrics, wake
        self._places, self._most_waiting = agent.settings.wave, most_waiting
        self._running: dict[int, Running] = {}
        self._inbox: SimpleQueue[Running | int | None] = SimpleQueue()  # a question, one to drop, or a reason to look
        self._numbers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self.failure: str | None = None  # of the engine, until an episode comes to its end again

    @property
    def codec(self) -> Codec:
        return self._agent.codec

    @property
    def open(self) -> int:
        """Questions that are not answered yet."""
        return len(self._running)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def ask(self, asking: Asking) -> Running:
        """Raises ReplyRefused where too many wait, or the server stops."""
        assert self._loop is not None, "the asker was not started"
        if self._stopping:
            raise _stopped()
        waiting = len(self._running) - self._places
        if waiting >= self._most_waiting:
            raise ReplyRefused(
                503, f"{waiting} questions wait already, at most {self._most_waiting} may", code="queue_full"
            )
        self._numbers += 1
        running = Running(self, self._numbers, asking, self._loop)
        self._running[running.number] = running
        self._send(running)
        self._count()
        return running

    def drop(self, number: int) -> None:
        if self._running.pop(number, None) is not None:
            self._metrics.dropped.inc()
            self._send(number)
            self._count()

    def refuse(self) -> None:
        """Take no more questions."""
        self._stopping = True

    def cut(self) -> None:
        """End open episodes with an error to their clients."""
        self.refuse()
        self._fail(_stopped())

    def close(self) -> None:
        self.cut()
        self._ended.set()
        self._send(None)
        if self._thread.is_alive():
            self._thread.join(10.0)

    def _send(self, message: Running | int | None) -> None:
        """To the thread that steps."""
        self._inbox.put(message)
        if self._wake is not None:
            self._wake()

    def _count(self) -> None:
        self._metrics.episodes.set(min(self._places, len(self._running)))
        self._metrics.questions_waiting.set(max(0, len(self._running) - self._places))

    def _fail(self, error: ReplyRefused) -> None:
        for number in list(self._running):
            running = self._running.pop(number, None)
            if running is not None:
                running.tell(error)
                self._send(number)
        self._count()

    # What follows runs in the thread.

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with LiveRollout(self._agent, self._look_up, self._heard) as rollout:
                    self._step(rollout)
            except Exception as error:  # a bug or a lack of memory: told to everyone, and the next one may go well
                told = error.message if isinstance(error, DgpoError) else None
                self.failure = told or type(error).__name__
                _log.error("the engine failed: %s", self.failure, exc_info=told is None)
                self._fail(ReplyRefused(500, f"the model failed: {self.failure}", code="engine_failed"))

    def _step(self, rollout: LiveRollout) -> None:
        while not self._ended.is_set():
            while not (rollout.moves and self._inbox.empty()):
                message = self._inbox.get()
                if isinstance(message, int):
                    rollout.drop(message)
                elif message is not None:
                    self._admit(rollout, message)
                elif self._ended.is_set():
                    return
            rollout.step()
            rollout.ended.clear()

    def _admit(self, rollout: LiveRollout, running: Running) -> None:
        """Tokenizers are not made for two threads, so that prompts are measured here."""
        if running.number not in self._running:  # given up meanwhile
            return
        asking = running.asking
        try:
            tokens = len(self._agent.codec.prompt_ids(asking.text).ids)
        except DgpoError as error:
            self._running.pop(running.number, None)
            running.tell(ReplyRefused(400, error.message, param="messages"))
            return
        if tokens > rollout.longest_prompt:
            self._running.pop(running.number, None)
            cause = f"the question's prompt has {tokens} tokens, at most {rollout.longest_prompt} are answered"
            running.tell(ReplyRefused(400, cause, code="context_length_exceeded", param="messages"))
            return
        question = Question("1", asking.text, (), "chat")  # the same request makes the same draws
        episode = AskedEpisode(running.number, question, 0, temperature=asking.temperature, seed=asking.seed)
        episode.most = asking.most
        rollout.queue.append(episode)
        running.tell(Accepted())

    def _heard(self, event: Event) -> None:
        ended = isinstance(event, Finished)
        running = self._running.pop(event.episode, None) if ended else self._running.get(event.episode)
        if ended:
            self.failure = None
            self._count()
        if running is not None:
            running.tell(event)

    def _look_up(self, query: str) -> Future[SearchCall]:
        assert self._loop is not None
        begun = asyncio.run_coroutine_threadsafe(self._found(query), self._loop)
        begun.add_done_callback(lambda _: self._send(None))
        return begun

    async def _found(self, query: str) -> SearchCall:
        """In the server's loop, where the searches of all clients are put together."""
        started = time.perf_counter()
        try:
            (hits,) = await self._search([query], self._agent.settings.top_k)
        except RetrievalError as error:
            return SearchCall(query, (), time.perf_counter() - started, error.message)
        except Exception as error:
            _log.exception("a search failed")
            return SearchCall(query, (), time.perf_counter() - started, f"{type(error).__name__} in the search engine")
        return SearchCall(query, tuple(hits), time.perf_counter() - started)


def _stopped() -> ReplyRefused:
    return ReplyRefused(503, "the server is being stopped", code="server_stopping")
