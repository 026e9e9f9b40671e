"""DistiLLM (Ko et al. 2024): skew KL to the teacher, with a share of student-written text that grows when needed.

The share of student-written sequences grows by `increment` whenever the validation loss has risen by `tolerance` since
it last rose; of those sequences the newly written part shrinks over the run and the rest is replayed from a buffer of
earlier ones. No likelihood term is ever put on student-written text. Deviations from the published code: the target's
entropy stays in the skew forward KL, so that what is logged is a KL (same gradient); mixtures are formed in log space
(it takes the logarithm of underflowed probabilities); the draw is per sequence (it draws per micro-batch); the
optional language-model loss on a pre-training corpus is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dgpo_cli.core.config import setting
from dgpo_cli.objectives import divergence
from dgpo_cli.objectives.base import Need, Objective, TokenBatch, TokenLoss

_CODE = "DistiLLM's code (d47e77f)"


class DistiLLM(Objective):
    """Loss per token: KL(T || alpha * T + (1 - alpha) * S), or KL(S || alpha * S + (1 - alpha) * T)."""

    formulas = r"""
        loss of a token, skew-forward-kl: \ell_t = \operatorname{KL}(\pi_T \,\|\, \alpha\, \pi_T + (1 - \alpha)\,
            \pi_\theta)_t
        loss of a token, skew-reverse-kl: \ell_t = \operatorname{KL}(\pi_\theta \,\|\, \alpha\, \pi_\theta + (1 -
            \alpha)\, \pi_T)_t
        loss of a token, total-variation: \ell_t = \frac{1}{2} \sum_v | \pi_T(v) - \pi_\theta(v) |
    """

    @dataclass(frozen=True)
    class Config:
        divergence: Literal["skew-forward-kl", "skew-reverse-kl", "total-variation"] = setting(
            "skew-forward-kl", "what is minimized", source="TAID's code (a062892)"
        )
        alpha: float = setting(0.1, "skew; 0 is the plain KL", source=_CODE, range="up to 1")
        initial_share: float = setting(
            0.0, "share of student-written sequences at the start", source=_CODE, range="up to 1"
        )
        increment: float = setting(
            0.1, "added to the share when the validation loss rises", source=_CODE, range="up to 1"
        )
        tolerance: float = setting(0.1, "rise of the validation loss, in nats per token", source=_CODE, range="finite")
        schedule: Literal["decreasing", "constant", "increasing"] = setting(
            "decreasing", "how the newly written part of it moves", source=_CODE
        )
        capacity: int = setting(1000, "sequences that the buffer keeps", source=_CODE, range="positive")

    config: Config
    evaluates_first = True

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._share = self.config.initial_share
        self._progress = 0.0
        self._last_rise: float | None = None  # validation loss when it last rose, at first the initial one

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER_DISTRIBUTION})

    @property
    def on_policy(self) -> bool:
        return bool(self.config.initial_share or self.config.increment)

    @property
    def student_fraction(self) -> float:
        return self._share

    @property
    def fresh_fraction(self) -> float:
        return {"decreasing": 1 - self._progress, "constant": 0.5, "increasing": self._progress}[self.config.schedule]

    @property
    def replay_capacity(self) -> int:
        return self.config.capacity if self.on_policy else 0

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.teacher_log_probs is not None
        teacher, student = tokens.teacher_log_probs, tokens.log_probs
        if self.config.divergence == "total-variation":
            name, loss = "total_variation", divergence.total_variation(teacher, student)
        elif self.config.divergence == "skew-reverse-kl":
            name, loss = "skew_reverse_kl", divergence.skew_reverse_kl(teacher, student, self.config.alpha)
        else:
            name, loss = "skew_forward_kl", divergence.skew_forward_kl(teacher, student, self.config.alpha)
        return TokenLoss({"policy": loss}, {name: loss.detach()})

    def after_step(self, metrics: Mapping[str, float], progress: float) -> None:
        self._progress = progress

    def after_eval(self, metrics: Mapping[str, float]) -> None:
        if "nll" not in metrics:
            return
        if self._last_rise is None:
            self._last_rise = metrics["nll"]
        elif metrics["nll"] >= self._last_rise + self.config.tolerance:
            self._share = min(1.0, self._share + self.config.increment)
            self._last_rise = metrics["nll"]

    def state_dict(self) -> dict[str, float]:
        state = {"student_share": self._share, "progress": self._progress}
        return state if self._last_rise is None else state | {"last_rise": self._last_rise}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._share, self._progress = state["student_share"], state["progress"]
        self._last_rise = state.get("last_rise")
