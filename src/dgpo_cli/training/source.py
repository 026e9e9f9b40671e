"""The source of the trajectories of a step. Order and draws are functions of (seed, step), so a resumed run needs no
generator state to see what an undisturbed one would have seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Question
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.base import Objective
from dgpo_cli.training.replay import ReplayBuffer

MAX_DRAWS = 10  # DAPO's cap on batches generated for one step (Yu et al. 2025)

T = TypeVar("T")
Roll = Callable[[Sequence[tuple[Question, int]]], list[Trajectory]]


def draw(items: Sequence[T], size: int, step: int, seed: int) -> list[tuple[T, int]]:
    """Batch number `step` of an endless series of shuffled epochs, each item with the number of its epoch."""
    batch = []
    for place in range(step * size, (step + 1) * size):
        epoch, offset = divmod(place, len(items))
        batch.append((items[_order(len(items), seed, epoch)[offset]], epoch))
    return batch


@lru_cache(maxsize=4)  # a batch spans two epochs at most where they are longer, and two series run in parallel
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


@dataclass(frozen=True, slots=True)
class Sequences:
    """The data of one step. A student's sequences are graded rollouts of the weights as they were when it wrote."""

    by_teacher: Sequence[Trajectory] = ()
    by_student: Sequence[Trajectory] = ()


class Source(Protocol):
    """The trajectories of each step."""

    def next(self, step: int) -> Sequences: ...


class TeacherTrajectories:
    """Batches of stored trajectories; the last batch of an epoch is smaller where the size does not divide it."""

    def __init__(self, trajectories: Sequence[Trajectory], batch_size: int, seed: int) -> None:
        if not trajectories:
            raise ConfigError("there is no trajectory to train on", hint="make some with `dgpo distill-data`")
        self.trajectories, self.batch_size, self.seed = trajectories, batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.trajectories) / self.batch_size)

    def next(self, step: int) -> Sequences:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(len(self.trajectories), self.seed, epoch)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return Sequences(by_teacher=[self.trajectories[i] for i in chosen])


class Mixture:
    """Batches of stored trajectories of which the student writes a share itself, as its objective asks.

    Who writes a sequence is drawn per sequence and step. The student answers the question of the trajectory whose place
    it takes, or an earlier sequence of its own is replayed; what it writes in a step is written at once, with the
    weights that the step begins with. `roll_teacher` replaces the stored trajectories by new ones.
    """

    def __init__(
        self,
        stored: TeacherTrajectories,
        objective: Objective,
        *,
        roll: Roll,
        roll_teacher: Roll | None,
        replay: ReplayBuffer | None,
    ) -> None:
        self.stored, self.objective, self.replay = stored, objective, replay
        self.roll, self.roll_teacher = roll, roll_teacher

    def next(self, step: int) -> Sequences:
        """Of each stored trajectory it is drawn who writes in its place: the student, by the share of the objective."""
        places = self.stored.next(step).by_teacher
        chance = random.Random(f"writers {self.stored.seed} {step}")
        fraction = self.objective.student_fraction
        fresh_below = fraction * self.objective.fresh_fraction
        draws = [chance.random() for _ in places]
        own = [t for t, x in zip(places, draws, strict=True) if x < fraction]
        by_teacher = [t for t, x in zip(places, draws, strict=True) if x >= fraction]
        fresh = [t for t, x in zip(places, draws, strict=True) if x < fresh_below]
        if self.replay is None or not self.replay.full:  # a buffer is filled before it is drawn from
            fresh = own
        pairs = [(t.question, step) for t in fresh]
        written = self.roll(pairs) if pairs else []
        if self.replay is not None:
            self.replay.add(written)
            written = written + self.replay.draw(len(own) - len(fresh), chance)
        if self.roll_teacher is not None and by_teacher:
            by_teacher = self.roll_teacher([(t.question, step) for t in by_teacher])
        return Sequences(by_teacher, written)


def require_batch(questions: Sequence[Question], batch_size: int) -> None:
    """Raises ConfigError if there are fewer."""
    if len(questions) < batch_size:
        fewer = "1 question is" if len(questions) == 1 else f"{len(questions)} questions are"
        raise ConfigError(
            f"{fewer} fewer than a batch of {batch_size}",
            hint="give more questions with --data, or a smaller --batch-size",
        )


class Rollouts:
    """Fresh rollouts of the student, `samples` attempts at each of `batch_size` questions.

    `roll` runs and grades (question, sample) pairs with the weights as they are. With `differing`, groups whose
    attempts all earned the same are replaced by further questions, at most `MAX_DRAWS` batches of them.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        batch_size: int,
        seed: int,
        roll: Roll,
        *,
        samples: int = 1,
        differing: bool = False,
    ) -> None:
        require_batch(questions, batch_size)
        self.questions, self.batch_size, self.seed = questions, batch_size, seed
        self.roll, self.samples, self.differing = roll, samples, differing

    def next(self, step: int) -> Sequences:
        """Fresh rollouts of a batch of questions, the attempts at one question in a row."""
        if not self.differing:
            return Sequences(by_student=[t for group in self._groups(step) for t in group])
        kept: list[list[Trajectory]] = []
        for attempt in range(MAX_DRAWS):
            groups = self._groups(step * MAX_DRAWS + attempt)
            kept += [g for g in groups if len({t.score.total for t in g if t.score is not None}) > 1]
            if len(kept) >= self.batch_size:
                break
        # If no group has a difference the step has nothing to learn from; its metrics are still recorded.
        return Sequences(by_student=[t for group in (kept or groups)[: self.batch_size] for t in group])

    def _groups(self, draw_number: int) -> list[list[Trajectory]]:
        drawn = draw(self.questions, self.batch_size, draw_number, self.seed)
        pairs = [(q, epoch * self.samples + i) for q, epoch in drawn for i in range(self.samples)]
        rolled = self.roll(pairs)
        return [rolled[i : i + self.samples] for i in range(0, len(rolled), self.samples)]
