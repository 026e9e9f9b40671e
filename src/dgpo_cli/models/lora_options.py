"""Settings of an adapter, which `lora.py` makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError

LINEAR_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraOptions:
    rank: int | None = setting(None, "of an adapter that is trained instead of the model (peft), such as 16")
    alpha: float | None = setting(None, "the adapter counts alpha / rank times; twice the rank by default")
    target_modules: tuple[str, ...] | None = setting(None, "linear maps that it changes; all of the layers by default")

    def __post_init__(self) -> None:
        if self.rank is None:
            if self.alpha is not None or self.target_modules is not None:
                raise ConfigError("there is no adapter without its rank", hint="give lora.rank too, such as 16")
            return
        if self.rank < 1:
            raise ConfigError(f"lora.rank = {self.rank} is not positive", hint="give lora.rank a value above 0")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha = {self.alpha} is not positive", hint="give lora.alpha a value above 0")
        if self.target_modules == ():
            raise ConfigError("lora.target_modules names no map", hint=f"name some of {', '.join(LINEAR_MAPS)}")

    def require_maps(self, maps: Mapping[str, int]) -> None:
        """Raises ConfigError where a model of these linear maps, with the smaller width of each, cannot have it."""
        if unknown := [name for name in self.maps if name not in maps]:
            raise ConfigError(
                f"lora.target_modules: the model has no {unknown[0]!r}", hint=f"give some of {', '.join(maps)}"
            )
        narrowest = min(maps[name] for name in self.maps)
        if (self.rank or 0) > narrowest:
            raise ConfigError(
                f"lora.rank = {self.rank} is more than {narrowest}, the width of the narrowest map",
                hint=f"give at most {narrowest}, or train the model itself, without lora.rank",
            )

    @property
    def maps(self) -> tuple[str, ...]:
        return self.target_modules or LINEAR_MAPS

    @property
    def scale(self) -> float:
        assert self.rank is not None
        return 2.0 if self.alpha is None else self.alpha / self.rank
