"""The interface of a rollout engine: token ids in, token ids and log-probabilities out. No tags, no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

SlotId = int


class TurnEnd(StrEnum):
    STOP = "stop"  # a stop string was completed, or an end-of-text token was written
    LENGTH = "length"  # the turn's token limit or the slot's capacity was reached


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one turn is generated. `key` and `turn` make the draw independent of what else is in the batch."""

    temperature: float = 1.0  # 0 = greedy
    max_new_tokens: int = 500  # per turn
    stop: tuple[str, ...] = ()  # a turn ends when its text contains one of these
    seed: int = 0
    key: str = ""  # question and sample


class Event(NamedTuple):
    """One or more tokens that a slot wrote in a turn. `end` is set if the last of them ends the turn."""

    slot: SlotId
    token_ids: Sequence[int]
    logprobs: Sequence[float | None]  # at the sampling temperature; at 1 for greedy decoding; None if unknown
    end: TurnEnd | None = None


class Engine(Protocol):
    """Slots keep their KV cache over turns: an observation costs its own tokens only."""

    @property
    def capacity(self) -> int:
        """Largest number of tokens a slot can hold, prompt and observations included."""
        ...

    def open(self, token_ids: Sequence[int], sampling: Sampling) -> SlotId:
        """Start an episode; its first turn begins with the next `step`."""
        ...

    def extend(self, slot: SlotId, token_ids: Sequence[int]) -> None:
        """Append an observation to a slot whose turn has ended; its next turn begins with the next `step`."""
        ...

    def step(self) -> list[Event]:
        """Advance every slot whose turn is running, and return one event for each; empty when no turn is running.

        One token or a burst of tokens where the model runs here; whole turns, as they finish, where another program
        runs it.
        """
        ...

    def close(self, slot: SlotId) -> None:
        """End an episode and free its cache."""
        ...
