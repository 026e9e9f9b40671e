"""Names of the rewards: (Question, Trajectory) -> Score. Strings, so that listing them imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from dgpo_cli.core import registry
from dgpo_cli.core.types import Question, Score, Trajectory

Reward = Callable[[Question, Trajectory], Score]

REWARDS: dict[str, str] = {"em": "dgpo_cli.rewards.exact_match:score"}


def get(name: str) -> Reward:
    """Raises ConfigError that lists the names."""
    return cast(Reward, registry.load(REWARDS, name, "reward"))
