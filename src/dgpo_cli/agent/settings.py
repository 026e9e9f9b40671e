"""How episodes are rolled out. "paper" is the reference recipe (DGPO scripts/train_dgpo.sh)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError

_COLDEST = 0.001  # ours; below it nothing but the most likely token is drawn anyway


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    top_k: int = setting(3, "passages per search", source="paper")
    max_turns: int = setting(4, "turns that may search; one more may only answer", source="paper")
    max_new_tokens: int = setting(500, "per turn", source="paper")
    max_observation_tokens: int = setting(500, "per search; the rest of the passages is cut", source="paper")
    max_prompt_tokens: int = setting(2048, "of the prompt; a longer one gets no answer", source="paper")
    max_tokens: int = setting(4096, "whole episode", source="paper")
    temperature: float = setting(1.0, "0 is greedy", source="paper")
    # A setting that decides the episodes: sums in bf16 depend on the batch.
    wave: int = setting(64, "episodes that run together", source="ours")
    overlap_steps: int = setting(
        0, "tokens that others write while a search is answered; pays off with a GPU", source="ours"
    )
    # An episode that runs into a loop, or writes a turn without an action twice, ends there (agent/repeats.py). Off in
    # training, which follows the reference: an episode that recovers after such a turn is trained on.
    stop_repeats: bool = setting(False, "ends an episode that repeats itself; distill-data sets it", source="ours")

    def __post_init__(self) -> None:
        for name in ("max_turns", "top_k", "max_new_tokens", "max_observation_tokens", "max_prompt_tokens", "wave"):
            if getattr(self, name) < (0 if name == "max_turns" else 1):
                raise ConfigError(f"{name} = {getattr(self, name)} is too small", hint=f"give {name} a larger value")
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens = {self.max_tokens} is too small", hint="give max_tokens a larger value")
        if self.overlap_steps < 0:
            raise ConfigError(
                f"overlap_steps = {self.overlap_steps} is negative", hint="0 searches while nobody writes"
            )
        if not 0 <= self.temperature < math.inf:
            what = "is negative" if self.temperature < 0 else "is no temperature"
            raise ConfigError(f"temperature = {self.temperature} {what}", hint="0 is greedy, 1 samples")
        if 0 < self.temperature < _COLDEST:
            raise ConfigError(
                f"temperature = {self.temperature} is below {_COLDEST}, where 32 bits lose logits", hint="0 is greedy"
            )

    def observation_room(self, context: int | None) -> int | None:
        """Tokens of a search's results in a small context, where nobody says how many: a quarter, so that two searches
        have room. None where the setting is no more than that.
        """
        room = self.max_observation_tokens if context is None else max(1, min(context, self.max_tokens) // 4)
        return room if room < self.max_observation_tokens else None

    def in_context(self, context: int | None, given: Collection[str]) -> RolloutSettings:
        """The settings with that room for results, unless it is among the names that were `given`."""
        room = self.observation_room(context)
        if room is None or "max_observation_tokens" in given:
            return self
        return replace(self, max_observation_tokens=room)

    def to_json(self, seed: int) -> dict[str, Any]:
        """The record in a file of episodes: these settings and the seed of all draws."""
        return asdict(self) | {"seed": seed}


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """Settings under `-o rollout.` of the commands that ask a trained model; by default those of its training."""

    top_k: int | None = None
    max_turns: int | None = None
    max_new_tokens: int | None = None
    max_observation_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
