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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dgpo_cli.errors import ConfigError
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
        teacher_share: float = field(
            default=0.2, metadata={"source": "Gu et al. 2024", "help": "of the mixture that draws the tokens"}
        )
        gamma: float = field(default=0.95, metadata={"source": _CODE, "help": "discount per written token"})
        reward_scale: float = field(default=0.5, metadata={"source": _CODE, "help": "divisor of the log-ratio"})
        reward_clip: float = field(default=100.0, metadata={"source": _CODE, "help": "largest size of a reward"})
        clip: float = field(default=0.2, metadata={"source": _CODE, "help": "the ratio counts within 1 +- clip"})
        length_normalized: bool = field(
            default=True, metadata={"source": "Gu et al. 2024", "help": "divide a return by the tokens that remain"}
        )
        single_step_weight: float = field(
            default=1.0, metadata={"source": "Gu et al. 2024", "help": "weight of KL(student || teacher) at each token"}
        )

        def __post_init__(self) -> None:
            if not 0 <= self.teacher_share < 1:
                raise ConfigError(f"teacher_share = {self.teacher_share}", hint="give a share from 0 to below 1")
            if self.reward_scale <= 0:
                raise ConfigError(f"reward_scale = {self.reward_scale}", hint="give a number above 0")
            if not 0 <= self.gamma <= 1:
                raise ConfigError(f"gamma = {self.gamma} is no discount", hint="give gamma from 0 to 1")
            for name in ("reward_clip", "clip", "single_step_weight"):
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} = {getattr(self, name)} is negative", hint="give 0 or more")

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
