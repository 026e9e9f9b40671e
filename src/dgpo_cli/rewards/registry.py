"""Names of the reward parts, and a reward made of them. Strings, so that listing them imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from dgpo_cli.core import registry
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Score
from dgpo_cli.errors import ConfigError
from dgpo_cli.rewards import exact_match

Part = Callable[[Trajectory], float]
Reward = Callable[[Trajectory], Score]

REWARDS: dict[str, str] = {
    "em": "dgpo_cli.rewards.exact_match:part",
    "f1": "dgpo_cli.rewards.token_f1:part",
    "format": "dgpo_cli.rewards.format_score:part",
    "retrieval_hit": "dgpo_cli.rewards.retrieval_hit:part",
    "abstention": "dgpo_cli.rewards.abstention:part",
}
DEFAULT_WEIGHTS = {"em": 1.0}  # the paper's


def get(name: str) -> Part:
    """Raises ConfigError that lists the names."""
    return cast(Part, registry.load(REWARDS, name, "reward part"))


def weighted(weights: Mapping[str, float]) -> Reward:
    """A reward whose total is the weighted sum of parts; `weights` go over the default, exact match alone.

    `Score.parts` holds every part without its weight, and `Score.correct` is the exact match whatever the weights are,
    so that gates stay on correctness. Raises ConfigError for an unknown part, or where no weight is left.
    """
    chosen = DEFAULT_WEIGHTS | dict(weights)
    parts = {name: get(name) for name in chosen}
    if not any(chosen.values()):
        raise ConfigError("every weight of the reward is 0", hint=f"give one of {', '.join(REWARDS)} a weight")

    def reward(trajectory: Trajectory) -> Score:
        values = {name: part(trajectory) for name, part in parts.items()}
        total = sum(chosen[name] * value for name, value in values.items())
        return Score(total, exact_match.score(trajectory.question, trajectory).correct, values)

    return reward
