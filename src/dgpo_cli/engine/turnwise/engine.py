"""Rollouts by a program that writes whole turns: a server, or a library with a scheduler of its own.

A slot is here no more than its token ids. What writes (a `Writer`) gets them all with every turn and is trusted to keep
what it computed for them; its turns are cut where the engine of this process would have ended them.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from dgpo_cli.engine.base import Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.sampling import stream_key
from dgpo_cli.engine.stops import StopMatcher, Stops
from dgpo_cli.models.codec import Codec


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn to be written."""

    slot: SlotId
    token_ids: tuple[int, ...]  # all that the slot holds
    sampling: Sampling
    max_new_tokens: int  # of this turn, the room that the slot has left counted
    seed: int  # [0, 2**31): of this turn's draws, by seed, question, sample and turn


@dataclass(frozen=True, slots=True)
class Written:
    """A turn that was written, one token at least."""

    token_ids: Sequence[int]
    logprobs: Sequence[float] | None  # as in Event, one per token; None if unknown
    end: TurnEnd


class Writer(Protocol):
    def begin(self, turn: TurnRequest) -> None:
        """Take a turn on; does not wait for it."""
        ...

    def finished(self, wanted: Container[SlotId]) -> list[tuple[SlotId, Written]]:
        """Turns that got done since the last call; waits for one while any is under way, or for `wake`.

        Turns of slots that are not `wanted` are passed over, however they ended.
        """
        ...

    def wake(self) -> None:
        """From any thread: let `finished` return."""
        ...


@dataclass(slots=True)
class _Slot:
    sampling: Sampling
    token_ids: list[int]
    turn: int = 0
    running: bool = True


class TurnwiseEngine:
    """Any number of slots of at most `capacity` tokens; how many are written at once is the writer's affair."""

    def __init__(self, writer: Writer, codec: Codec, *, capacity: int) -> None:
        self._writer, self._codec, self._capacity = writer, codec, capacity
        self._slots: dict[SlotId, _Slot] = {}
        self._next_id = 0
        self._woken = threading.Event()

    @property
    def capacity(self) -> int:
        return self._capacity

    def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
        """Raises ValueError if the prompt leaves no room to write."""
        if not 0 < len(token_ids) < self._capacity:
            raise ValueError(f"a prompt of {len(token_ids)} tokens in a slot of {self._capacity}")
        slot, self._next_id = self._next_id, self._next_id + 1
        self._slots[slot] = _Slot(sampling, list(token_ids))
        self._begin(slot)
        return slot

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        """Raises ValueError if the slot is still writing or the observation leaves no room to write."""
        state = self._slots[slot]
        if state.running:
            raise ValueError(f"slot {slot} is in the middle of a turn")
        if len(state.token_ids) + len(token_ids) >= self._capacity:
            raise ValueError(f"slot {slot} has no room for {len(token_ids)} more tokens and an answer")
        state.token_ids.extend(token_ids)
        state.turn += 1
        state.running = True
        self._begin(slot)

    def step(self) -> list[Event]:
        events: list[Event] = []
        while not (events or self._woken.is_set()) and any(state.running for state in self._slots.values()):
            for slot, written in sorted(self._writer.finished(self._slots), key=lambda pair: pair[0]):
                events.append(self._end(slot, written))
        self._woken.clear()
        return events

    def close(self, slot: SlotId) -> None:
        del self._slots[slot]

    def wake(self) -> None:
        """From any thread: a step that waits for a turn returns, if need be without one."""
        self._woken.set()
        self._writer.wake()

    def _begin(self, slot: SlotId) -> None:
        state, sampling = self._slots[slot], self._slots[slot].sampling
        self._writer.begin(
            TurnRequest(
                slot,
                tuple(state.token_ids),
                sampling,
                min(sampling.max_new_tokens, self._capacity - len(state.token_ids)),
                stream_key(sampling.seed, sampling.key, state.turn) & 0x7FFFFFFF,
            )
        )

    def _end(self, slot: SlotId, written: Written) -> Event:
        """The turn, up to the token that ends it."""
        state = self._slots[slot]
        count, end = self._length(state, written)
        assert count, f"nothing was written in slot {slot}"
        tokens = written.token_ids[:count]
        state.token_ids.extend(tokens)
        state.running = False
        return Event(slot, tokens, [None] * count if written.logprobs is None else written.logprobs[:count], end)

    def _length(self, state: _Slot, written: Written) -> tuple[int, TurnEnd]:
        """Number of tokens that count, and why the turn ended: a program may write on, or count other tokens."""
        stops = StopMatcher(Stops(state.sampling.stop, self._codec.token_bytes, self._codec.eos_ids))
        limit = min(state.sampling.max_new_tokens, self._capacity - len(state.token_ids))
        count = stops.feed(written.token_ids[:limit])
        if count is not None:
            return count, TurnEnd.STOP
        if len(written.token_ids) >= limit:
            return limit, TurnEnd.LENGTH
        return len(written.token_ids), written.end
