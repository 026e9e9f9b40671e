"""TAID (Shing et al. 2025): distil from a target that moves from the student (t = 0) to the teacher (t = 1).

The target's logits are (1 - t) * student (without gradient) + t * teacher. t follows a line from `t_start` to `t_end`
and runs ahead of it while the loss falls. With `alpha` = 5e-4, the paper's, it can do so only in runs of more than
2 * (t_end - t_start) / (alpha * (1 - t_start)) steps, 4,000 for the defaults; "auto" scales it with the number of
steps, so that t starts at twice the line's slope in runs of any length. Deviations from the published code: the
target's entropy stays in the loss, which makes it a KL (same gradient) and its relative change that of the paper; t
moves once per step by the mean over the step (it moves per micro-batch and rank) and never during validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.base import Need, Objective, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import kl, log_probs

_CODE = "TAID's code (a062892)"


class TAID(Objective):
    """Loss per token: KL(softmax((1 - t) * student logits + t * teacher logits) || student)."""

    formulas = r"""
        loss of a token: \ell_t = \operatorname{KL}(\pi_\tau \,\|\, \pi_\theta)_t
        target (τ is the t of the settings): \pi_\tau \propto \exp((1 - \tau)\, z_\theta + \tau\, z_T)
    """

    @dataclass(frozen=True)
    class Config:
        t_start: float = setting(0.4, "t of the first step", source=_CODE)
        t_end: float = setting(1.0, "largest t, reached at the end", source=_CODE)
        alpha: float | Literal["auto"] = setting(
            "auto",
            "how far t may run ahead of its line",
            source="ours; 5e-4 in Shing et al. 2025",
            range="not negative",
        )
        momentum: float = setting(0.99, "of the loss's relative change (the paper's beta)", source=_CODE, range="share")

        def __post_init__(self) -> None:
            if not 0 <= self.t_start <= self.t_end <= 1:
                raise ConfigError(
                    f"t_start = {self.t_start}, t_end = {self.t_end}", hint="give 0 <= t_start <= t_end <= 1"
                )

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.t = self.config.t_start
        self._momentum = 0.0
        self._last_loss: float | None = None
        self._steps: int | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER_DISTRIBUTION})

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.teacher_log_probs is not None
        student = tokens.log_probs.detach()
        # An id that both models exclude is at -inf; with t = 0 or 1 its product would be NaN.
        target = student if self.t == 0 else tokens.teacher_log_probs
        if 0 < self.t < 1:
            target = (1 - self.t) * student + self.t * target
        divergence = kl(log_probs(target), tokens.log_probs)
        metrics = {"kl_to_target": divergence.detach(), "t": divergence.detach() * 0 + self.t}
        return TokenLoss({"policy": divergence}, metrics)

    def after_step(self, metrics: Mapping[str, float], progress: float) -> None:
        if self._steps is None:
            self._steps = max(1, round(1 / progress))
        if "kl_to_target" in metrics:  # a step without a written token has no loss
            self.advance(metrics["kl_to_target"], progress, self._alpha(self._steps))

    def advance(self, loss: float, progress: float, alpha: float) -> None:
        """Move t after a step with this loss; `progress` is the position on the line, from 0 to 1."""
        if self._last_loss is not None:
            change = (self._last_loss - loss) / (self._last_loss + 1e-15)
            self._momentum = self.config.momentum * self._momentum + (1 - self.config.momentum) * change
            ahead = self.t + alpha * (1 - self.t) / (1 + math.exp(-self._momentum))
            line = self.config.t_start + (self.config.t_end - self.config.t_start) * progress
            self.t = min(self.config.t_end, max(line, ahead))
        self._last_loss = loss

    def _alpha(self, steps: int) -> float:
        """A half of alpha * (1 - t_start) is the first step ahead, since the sigmoid of no change is a half."""
        if self.config.alpha != "auto":
            return self.config.alpha
        if self.config.t_start == 1:
            return 0.0
        return 4 * (self.config.t_end - self.config.t_start) / (steps * (1 - self.config.t_start))

    def state_dict(self) -> dict[str, float]:
        state = {"t": self.t, "momentum": self._momentum}
        if self._last_loss is not None:
            state["last_loss"] = self._last_loss
        return state if self._steps is None else state | {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.t, self._momentum = state["t"], state["momentum"]
        self._last_loss = state.get("last_loss")
        self._steps = None if "steps" not in state else int(state["steps"])
