"""On-policy distillation (Thinking Machines 2025): the student searches and answers, the teacher grades every token.

The advantage of a token is coef * (log p_teacher - log p_student) as it was written, without discount, group or
baseline; its policy gradient is in expectation that of KL(student || teacher) at the visited states. Whether the
answer was right does not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgpo_cli.core.config import setting
from dgpo_cli.objectives.advantage import k1
from dgpo_cli.objectives.base import Credit, Need, Objective, ScoredEpisode, TokenBatch, TokenLoss
from dgpo_cli.objectives.deferred import torch

_CODE = "tinker-cookbook (9dfcc3a)"


class OPD(Objective):
    """Loss per token: -(p / p_old) * advantage."""

    formulas = r"""
        loss of a token: \ell_t = -\frac{\pi_\theta(y_t)}{\pi_{\text{old}}(y_t)}\, A_t
        advantage: A_t = c \log \frac{\pi_T(y_t)}{\pi_{\text{old}}(y_t)}
    """

    @dataclass(frozen=True)
    class Config:
        coef: float = setting(1.0, "weight of the log-ratio", source=_CODE, range="positive")

    config: Config
    whitens_advantages = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER_LOGPROBS})

    @property
    def credits(self) -> bool:
        return True

    def credit(self, episodes: Sequence[ScoredEpisode]) -> list[Credit]:
        result = []
        for episode in episodes:
            assert episode.teacher_logprobs is not None
            gap = k1(episode.behavior_logprobs, episode.teacher_logprobs)
            result.append(Credit(torch.where(episode.written, -self.config.coef * gap, 0.0)))
        return result

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.behavior_logprobs is not None and tokens.advantages is not None
        assert tokens.teacher_logprobs is not None
        ratio = (tokens.logprobs - tokens.behavior_logprobs).exp()
        metrics = {"teacher_k1": k1(tokens.behavior_logprobs, tokens.teacher_logprobs), "ratio": ratio.detach()}
        return TokenLoss({"policy": -ratio * tokens.advantages}, metrics)
