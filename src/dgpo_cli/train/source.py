"""Where the trajectories of a step come from. Order and draws are functions of (seed, step), so a resumed run needs no
generator state to see what an undisturbed one would have seen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from dgpo_cli.core.types import Question, Trajectory
from dgpo_cli.errors import ConfigError

T = TypeVar("T")
Roll = Callable[[Sequence[tuple[Question, int]]], list[Trajectory]]


def draw(items: Sequence[T], size: int, step: int, seed: int) -> list[tuple[T, int]]:
    """Batch number `step` of an endless series of shuffled epochs, each item with the number of its epoch."""
    batch = []
    for place in range(step * size, (step + 1) * size):
        epoch, offset = divmod(place, len(items))
        batch.append((items[_order(len(items), seed, epoch)[offset]], epoch))
    return batch


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    key = (count, seed, epoch)
    if key not in _orders:
        if len(_orders) > 2:  # a batch spans two epochs at most where epochs are longer than a batch
            _orders.clear()
        order = list(range(count))
        random.Random(f"order {seed} {epoch}").shuffle(order)
        _orders[key] = order
    return _orders[key]


class Source(Protocol):
    on_policy: bool  # the student wrote the trajectories, and they are scored

    def next(self, step: int) -> list[Trajectory]: ...


class TeacherTrajectories:
    """Batches of stored trajectories; the last batch of an epoch is smaller where the size does not divide it."""

    on_policy = False

    def __init__(self, trajectories: Sequence[Trajectory], batch_size: int, seed: int) -> None:
        if not trajectories:
            raise ConfigError("there is no trajectory to train on", hint="make some with `dgpo distill-data`")
        self.trajectories, self.batch_size, self.seed = trajectories, batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.trajectories) / self.batch_size)

    def next(self, step: int) -> list[Trajectory]:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(len(self.trajectories), self.seed, epoch)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [self.trajectories[i] for i in chosen]


class Rollouts:
    """Fresh rollouts of the student. `roll` runs and grades (question, sample) pairs with the weights as they are."""

    on_policy = True

    def __init__(self, questions: Sequence[Question], batch_size: int, seed: int, roll: Roll) -> None:
        if len(questions) < batch_size:
            raise ConfigError(
                f"{len(questions)} questions are fewer than a batch of {batch_size}",
                hint="give more questions with --data, or a smaller --batch-size",
            )
        self.questions, self.batch_size, self.seed = questions, batch_size, seed
        self.roll = roll

    def next(self, step: int) -> list[Trajectory]:
        return self.roll(draw(self.questions, self.batch_size, step, self.seed))
