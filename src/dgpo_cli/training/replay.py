"""Student-written sequences that are trained on again later (DistiLLM, arXiv 2402.03898)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dgpo_cli.core.records import dump_line, read_jsonl
from dgpo_cli.core.trajectory import Trajectory


class ReplayBuffer:
    """The last `capacity` sequences, oldest first."""

    def __init__(self, capacity: int) -> None:
        self._kept: deque[Trajectory] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def full(self) -> bool:
        return len(self._kept) == self._kept.maxlen

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        self._kept.extend(trajectories)

    def draw(self, count: int, chance: random.Random) -> list[Trajectory]:
        """`count` different sequences, or all there are."""
        return chance.sample(list(self._kept), min(count, len(self._kept)))

    def save(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(dump_line(t.to_json()) for t in self._kept)

    def load(self, path: Path) -> None:
        """Raises InputError or ValueError for a missing or damaged file."""
        kept = [Trajectory.from_json(row) for _, row in read_jsonl(path)]
        self._kept.clear()
        self._kept.extend(kept)
