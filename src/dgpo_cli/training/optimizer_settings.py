"""Settings of an optimizer: its kind, learning rate and schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine", "linear"]
OptimizerKind = Literal["adamw", "adamw-8bit"]


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW as in the reference (betas 0.9 / 0.999, weight decay 0.01, gradient norm clipped at 1)."""

    lr: float
    kind: OptimizerKind = "adamw"
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0

    def lr_at(self, update: int, total: int) -> float:
        """Learning rate of update number `update` (from 0) of `total`."""
        if update < self.warmup_steps:
            return self.lr * (update + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        left = 1 - (update - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.lr * (left if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
