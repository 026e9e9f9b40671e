"""An engine that writes the turns of a script: for tests, and for demonstrations that a teacher is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dgpo_cli.engine.base import Event, Sampling, SlotId, TurnEnd
from dgpo_cli.engine.stops import StopMatcher, Stops
from dgpo_cli.models.codec import Codec

Script = Callable[[str, Sequence[str]], str]
"""`script(opened, read)` is the text of the next turn; `read` holds what was appended after each turn so far.

`opened` is the prompt, or the key of the slot's sampling in an engine `by_key`.
"""


def turns_by_question(turns: Mapping[str, Sequence[str]]) -> Script:
    """A script that plays fixed turns: the key is a text that the prompt holds, such as the question.

    The script raises ValueError for a prompt that holds no key, or more than one, and for a turn beyond the last.
    """

    def script(prompt: str, read: Sequence[str]) -> str:
        keys = [key for key in turns if key in prompt]
        if len(keys) != 1:
            raise ValueError(f"{len(keys)} of {len(turns)} scripts fit the prompt {prompt[-200:]!r}")
        played = turns[keys[0]]
        if len(read) >= len(played):
            raise ValueError(f"the script of {keys[0]!r} has {len(played)} turns, turn {len(read) + 1} was asked for")
        return played[len(read)]

    return script


@dataclass(slots=True)
class _ScriptedSlot:
    sampling: Sampling
    opened: str
    length: int  # tokens, written ones included
    stops: StopMatcher
    read: list[str] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)  # of the current turn, to be written
    written: int = 0  # tokens of the current turn


class ScriptedEngine:
    """Writes the tokens of the codec's tokenizer, one a step, with log-probability `logprob`: 0, or None for unknown.

    It rejects the same calls as the real engine. A turn whose script ends without a stop string ends like a turn that
    wrote an end-of-text token.
    """

    def __init__(
        self,
        codec: Codec,
        script: Script,
        *,
        capacity: int = 1 << 20,
        by_key: bool = False,
        logprob: float | None = 0.0,
    ) -> None:
        self._codec, self._script, self._capacity = codec, script, capacity
        self._by_key, self._logprob = by_key, logprob
        self._slots: dict[SlotId, _ScriptedSlot] = {}
        self._next_id = 0

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def open_slots(self) -> int:
        return len(self._slots)

    def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
        """Raises ValueError if the prompt leaves no room to write, or the script has nothing to say to it."""
        if not 0 < len(token_ids) < self._capacity:
            raise ValueError(f"a prompt of {len(token_ids)} tokens in a slot of {self._capacity}")
        opened = sampling.key if self._by_key else self._codec.decode(token_ids)
        state = _ScriptedSlot(sampling, opened, len(token_ids), self._matcher(sampling))
        self._start_turn(state)
        slot, self._next_id = self._next_id, self._next_id + 1
        self._slots[slot] = state
        return slot

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        """Raises ValueError if the slot is still writing or the observation leaves no room to write."""
        state = self._slots[slot]
        if state.queue:
            raise ValueError(f"slot {slot} is in the middle of a turn")
        if state.length + len(token_ids) >= self._capacity:
            raise ValueError(f"slot {slot} has no room for {len(token_ids)} more tokens and an answer")
        state.read.append(self._codec.decode(token_ids))
        state.length += len(token_ids)
        self._start_turn(state)

    def step(self) -> list[Event]:
        return [self._write(slot, state) for slot, state in self._slots.items() if state.queue]

    def close(self, slot: SlotId) -> None:
        del self._slots[slot]

    def _matcher(self, sampling: Sampling) -> StopMatcher:
        return StopMatcher(Stops(sampling.stop, self._codec.token_bytes))

    def _start_turn(self, state: _ScriptedSlot) -> None:
        text = self._script(state.opened, state.read)
        state.queue = deque(self._codec.turn_ids(text))
        if not state.queue:
            raise ValueError(f"the script wrote nothing after {state.read[-1:] or state.opened!r}")
        state.stops = self._matcher(state.sampling)
        state.written = 0

    def _write(self, slot: SlotId, state: _ScriptedSlot) -> Event:
        token = state.queue.popleft()
        state.written += 1
        state.length += 1
        end = None
        if state.stops.feed((token,)) or not state.queue:
            end = TurnEnd.STOP
        elif state.written >= state.sampling.max_new_tokens or state.length >= self._capacity:
            end = TurnEnd.LENGTH
        if end is not None:
            state.queue.clear()
        return Event(slot, (token,), (self._logprob,), end)
