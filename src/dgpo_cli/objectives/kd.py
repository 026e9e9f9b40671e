"""KD: cross-entropy plus word-level forward KL on sequences that the teacher wrote (Hinton et al. 2015).

The paper's cold start (arXiv 2508.20324): L = CE + 1.0 * KL(teacher || student) on the teacher's right trajectories.
Deviation from the code that the authors point to: the KL keeps the teacher's entropy, so that what is logged is a KL
and reaches 0; its gradient is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.base import Need, Objective, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import kl


class KD(Objective):
    """Loss per token: ce_weight * -log p(token) + kl_weight * KL(teacher || student)."""

    formulas = r"""
        loss of a token: \ell_t = -w_{\text{ce}} \log \pi_\theta(y_t) + w_{\text{kl}} \operatorname{KL}(\pi_T \,\|\,
            \pi_\theta)_t
    """

    @dataclass(frozen=True)
    class Config:
        ce_weight: float = setting(1.0, "weight of -log p(token)", source="arXiv 2508.20324", range="not negative")
        kl_weight: float = setting(
            1.0, "weight of KL(teacher || student)", source="arXiv 2508.20324", range="not negative"
        )

        def __post_init__(self) -> None:
            if not self.ce_weight and not self.kl_weight:
                raise ConfigError(
                    "ce_weight and kl_weight are both 0", hint="nothing would be learned; give one of them"
                )

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER_DISTRIBUTION}) if self.config.kl_weight else frozenset()

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        loss = self.config.ce_weight * -tokens.logprobs
        metrics = {}
        if self.config.kl_weight:
            assert tokens.teacher_log_probs is not None
            divergence = kl(tokens.teacher_log_probs, tokens.log_probs)
            loss = loss + self.config.kl_weight * divergence
            metrics["forward_kl"] = divergence.detach()
        return TokenLoss({"policy": loss}, metrics)
