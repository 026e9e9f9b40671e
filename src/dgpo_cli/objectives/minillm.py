"""MiniLLM (Gu et al. 2024): reverse KL by policy gradient, plus the exact gradient of each single step.

The student's tokens are drawn from `teacher_share` * teacher + (1 - teacher_share) * student. A token's reward is
(log p_teacher - log p_student) / reward_scale; its return is the discounted sum from there on divided by the number of
tokens that remain, whitened over the step. The clipped surrogate takes the probability ratio to the mixture that drew
the token, which corrects for it. The single-step term is the full-vocabulary KL(student || teacher) at every token.
Deviations from the published code: whitening, returns and lengths count written tokens only; the
optional loss on a pre-training corpus is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpo_cli.core.config import setting
from dgpo_cli.objectives.advantage import clipped_policy_loss, k1
from dgpo_cli.objectives.base import Credit, Need, Objective, ScoredEpisode, TokenBatch, TokenLoss
from dgpo_cli.objectives.deferred import torch
from dgpo_cli.objectives.divergence import kl

if TYPE_CHECKING:
    from torch import Tensor

_CODE = "MiniLLM's code (4f2a9de)"


class MiniLLM(Objective):
    """Loss per token: clipped surrogate of the length-normalized return + single_step_weight * KL(S || T)."""

    formulas = r"""
        loss of a token: \ell_t = -\min(\rho_t A_t,\ \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A_t) +
            w \operatorname{KL}(\pi_\theta \,\|\, \pi_T)_t
        ratio to the mixture that drew the token: \rho_t = \frac{\pi_\theta(y_t)}{s\, \pi_T(y_t) + (1 - s)\,
            \pi_{\text{old}}(y_t)}
        advantage: A = \operatorname{whiten}(G), \quad G_t = \frac{1}{L - t + 1} \sum_{k \ge t} \gamma^{k - t}
            \operatorname{clip}(r_k, -c, c)
        reward of a token: r_t = \frac{1}{\sigma} \log \frac{\pi_T(y_t)}{\pi_{\text{old}}(y_t)}
    """

    @dataclass(frozen=True)
    class Config:
        teacher_share: float = setting(
            0.2, "of the mixture that draws the tokens", source="Gu et al. 2024", range="share"
        )
        gamma: float = setting(0.95, "discount per written token", source=_CODE, range="up to 1")
        reward_scale: float = setting(0.5, "divisor of the log-ratio", source=_CODE, range="positive")
        reward_clip: float = setting(100.0, "largest size of a reward", source=_CODE, range="bound")
        clip: float = setting(0.2, "the ratio counts within 1 +- clip", source=_CODE, range="bound")
        length_normalized: bool = setting(True, "divide a return by the tokens that remain", source="Gu et al. 2024")
        single_step_weight: float = setting(
            1.0, "weight of KL(student || teacher) at each token", source="Gu et al. 2024", range="not negative"
        )

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        exact = {Need.TEACHER_DISTRIBUTION} if self.config.single_step_weight else set()
        return frozenset({Need.TEACHER_LOGPROBS} | exact)

    @property
    def credits(self) -> bool:
        return True

    @property
    def sampled_from_teacher(self) -> float:
        return self.config.teacher_share

    def credit(self, episodes: Sequence[ScoredEpisode]) -> list[Credit]:
        result = []
        for episode in episodes:
            advantages = torch.zeros_like(episode.behavior_logprobs)
            advantages[episode.written] = self.returns(episode)
            result.append(Credit(advantages, kl_weight=self.config.single_step_weight))
        return result

    def returns(self, episode: ScoredEpisode) -> Tensor:
        """Return of each written token, in order."""
        assert episode.teacher_logprobs is not None
        gap = -k1(episode.behavior_logprobs, episode.teacher_logprobs)[episode.written]
        rewards = (gap / self.config.reward_scale).clamp(-self.config.reward_clip, self.config.reward_clip)
        returns = torch.zeros_like(rewards)
        running = torch.zeros(())
        for t in range(len(rewards) - 1, -1, -1):
            running = rewards[t] + self.config.gamma * running
            returns[t] = running / (len(rewards) - t) if self.config.length_normalized else running
        return returns

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.sampling_logprobs is not None and tokens.advantages is not None
        policy, clipped = clipped_policy_loss(
            tokens.logprobs, tokens.sampling_logprobs, tokens.advantages, self.config.clip
        )
        metrics = {"clip_fraction": clipped}
        if self.config.single_step_weight:
            assert tokens.teacher_log_probs is not None
            exact = kl(tokens.log_probs, tokens.teacher_log_probs)
            policy = policy + self.config.single_step_weight * exact
            metrics["reverse_kl"] = exact.detach()
        return TokenLoss({"policy": policy}, metrics)
