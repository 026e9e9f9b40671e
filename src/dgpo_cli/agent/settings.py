"""How episodes are rolled out. Defaults are the reference recipe's (DGPO scripts/train_dgpo.sh) unless marked ours."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dgpo_cli.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    max_turns: int = 4  # turns that may search; one more may only answer
    top_k: int = 3
    max_new_tokens: int = 500  # per turn
    max_observation_tokens: int = 500
    max_prompt_tokens: int = 2048
    max_tokens: int = 4096  # of a whole episode
    temperature: float = 1.0
    seed: int = 0
    wave: int = 64  # ours: episodes that run together; part of the settings because bf16 sums depend on the batch
    overlap_steps: int = 0  # ours: tokens that others write while a search is answered; pays off beside a GPU
    # ours: an episode that runs into a loop, or writes a turn without an action twice, ends there (agent/repeats.py).
    # Off in training, which follows the reference: an episode that recovers after such a turn is trained on.
    stop_repeats: bool = False

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
