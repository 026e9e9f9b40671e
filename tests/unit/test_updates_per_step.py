"""A step makes no more updates than it has episodes, and its learning rates know that."""

from __future__ import annotations

import pytest

from dgpo_cli.training.ingredients import episodes_per_step, rl_objective, updates_per_step
from dgpo_cli.training.settings import KDSettings, RLSettings


@pytest.mark.parametrize(
    ("method", "options", "episodes", "updates"),
    [
        ("ppo", {"batch_size": 512}, 512, 2),
        ("ppo", {"batch_size": 1}, 1, 1),
        ("grpo", {"batch_size": 1}, 5, 2),
        ("grpo", {"batch_size": 1, "samples": 2, "mini_batches": 7}, 2, 2),
    ],
)
def test_of_rl(method: str, options: dict[str, int], episodes: int, updates: int) -> None:
    settings = RLSettings(student="s", teacher=None, index="i", questions="q", method=method, **options)
    objective = rl_objective(settings)
    assert (episodes_per_step(settings, objective), updates_per_step(settings, objective)) == (episodes, updates)


def test_of_kd() -> None:
    settings = KDSettings(student="s", teacher=None, trajectories="t", method="seqkd")
    objective = rl_objective(RLSettings(student="s", teacher=None, index="i", questions="q", method="ppo"))
    assert updates_per_step(settings, objective) == 1
