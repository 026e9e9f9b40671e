"""PPO (Schulman et al. 2017) as in Search-R1 (arXiv 2503.09516): a KL to the starting policy inside the reward.

The reward of the last written token is the episode's; every written token pays kl_coef times k1 against the
reference. Deviation from the reference: only written tokens enter the advantages, whitening and value loss.

The other forms of the KL, with r = log p - log p_other of the written token, and the gradient each has in expectation:
`k1-reward` (r inside the reward) that of the sequence's KL(student || other), later tokens credited to earlier ones;
`k3-reward` the same kind with exp(-r) - 1 + r, never negative, clamped at 10; `k1-token` (ratio times r without
gradient, a loss) exactly that of KL(student || other) at the visited states; `k2-loss` (r squared, halved) the same;
`k3-loss` that of the forward KL(other || student), with high variance where the other model is much surer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo_cli.core.config import setting
from dgpo_cli.core.types import Score
from dgpo_cli.objectives.advantage import clipped_policy_loss, clipped_value_loss, gae, k1, k3
from dgpo_cli.objectives.base import Credit, Need, Objective, ScoredEpisode, TokenBatch, TokenLoss
from dgpo_cli.objectives.deferred import torch
from dgpo_cli.objectives.divergence import entropy

if TYPE_CHECKING:
    from torch import Tensor

KLForm = Literal["k1-reward", "k3-reward", "k1-token", "k2-loss", "k3-loss"]
_REWARD_FORMS = ("k1-reward", "k3-reward")
_RECIPE = "reference recipe (arXiv 2508.20324, train_dgpo.sh)"


class PPO(Objective):
    """Terms per token: "policy" = clipped surrogate - entropy_coef * entropy, "value" = clipped squared error / 2."""

    formulas = r"""
        loss of a token: \ell_t = -\min(\rho_t A_t,\ \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A_t) -
            c_H \operatorname{H}(\pi_\theta)_t
        probability ratio: \rho_t = \frac{\pi_\theta(y_t)}{\pi_{\text{old}}(y_t)}
        advantage: A = \operatorname{whiten}(\hat{A}), \quad \hat{A}_t = \sum_{k \ge t} (\gamma \lambda)^{k - t}
            \delta_k, \quad \delta_t = r_t + \gamma V^{\text{old}}_{t + 1} - V^{\text{old}}_t
        reward of a token, kl_form k1-reward: r_t = R\, [t = L] - \beta \log \frac{\pi_{\text{old}}(y_t)}{\pi_0(y_t)}
        loss of the critic: \frac{1}{2} \max((V_t - G_t)^2,\ (\operatorname{clip}(V_t,\ V^{\text{old}}_t - c,\
            V^{\text{old}}_t + c) - G_t)^2), \quad G_t = \hat{A}_t + V^{\text{old}}_t
    """

    @dataclass(frozen=True)
    class Config:
        clip: float = setting(
            0.2, "the probability ratio counts within 1 - clip and 1 + clip", source=_RECIPE, range="up to 1"
        )
        value_clip: float = setting(0.5, "how far from its old value a value counts", source=_RECIPE, range="bound")
        gamma: float = setting(1.0, "discount per written token", source=_RECIPE, range="up to 1")
        lam: float = setting(1.0, "lambda of generalized advantages", source=_RECIPE, range="up to 1")
        entropy_coef: float = setting(0.001, "weight of the entropy bonus", source=_RECIPE, range="not negative")
        kl_coef: float = setting(
            0.001, "weight of the KL to the reference, or to the teacher", source=_RECIPE, range="not negative"
        )
        kl_form: KLForm = setting("k1-reward", "how the KL is estimated, and where it acts", source=_RECIPE)

    config: Config

    @property
    def kl_target(self) -> Need | None:
        """The signal of the model that the KL compares with; None where there is no KL."""
        return Need.REFERENCE_LOGPROBS if self.config.kl_coef else None

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.REWARD, Need.VALUES} | ({self.kl_target} if self.kl_target else set()))

    def kl_applies(self, score: Score) -> bool:
        """Whether the KL, to whichever model, applies to an episode with this score."""
        return True

    def other_logprobs(self, of: ScoredEpisode | TokenBatch) -> Tensor | None:
        """Log-probabilities of the model that the KL compares with."""
        return of.reference_logprobs

    def reward_penalty(self, episode: ScoredEpisode) -> Tensor:
        """Penalty of each written token inside the reward [L]."""
        if not self.kl_target or self.config.kl_form not in _REWARD_FORMS or not self.kl_applies(episode.score):
            return torch.zeros_like(episode.behavior_logprobs)
        other = self.other_logprobs(episode)
        assert other is not None
        estimate = k1 if self.config.kl_form == "k1-reward" else k3
        return self.config.kl_coef * estimate(episode.behavior_logprobs, other)

    def kl_loss_weight(self, episode: ScoredEpisode) -> float:
        """Weight of a KL in the loss of every written token of the episode."""
        acts = self.kl_target and self.config.kl_form not in _REWARD_FORMS and self.kl_applies(episode.score)
        return self.config.kl_coef if acts else 0.0

    def token_rewards(self, episode: ScoredEpisode) -> Tensor:
        """Reward per token [L]: minus its penalty, and the score on the last written token."""
        rewards = torch.where(episode.written, -self.reward_penalty(episode), 0.0)
        places = episode.written.nonzero()
        if len(places):  # not on the last token of the sequence: credit assignment skips tokens that were not written
            rewards[int(places[-1])] += episode.score.total
        return rewards

    def credit(self, episodes: Sequence[ScoredEpisode]) -> list[Credit]:
        if not episodes:
            return []
        width = max(len(e.written) for e in episodes)
        rewards, values, mask = (torch.zeros(len(episodes), width) for _ in range(3))
        for row, episode in enumerate(episodes):
            assert episode.values is not None
            length = len(episode.written)
            rewards[row, :length] = self.token_rewards(episode)
            values[row, :length], mask[row, :length] = episode.values, episode.written.float()
        advantages, returns = gae(rewards, values, mask, gamma=self.config.gamma, lam=self.config.lam)
        return [
            Credit(
                advantages[row, : len(episode.written)],
                returns[row, : len(episode.written)],
                rewards[row, : len(episode.written)],
                kl_weight=self.kl_loss_weight(episode),
                metrics={"reward_penalty": float(self.reward_penalty(episode)[episode.written].sum())},
            )
            for row, episode in enumerate(episodes)
        ]

    def surrogate(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """The clipped surrogate [n] and where the clip was active [n]."""
        assert tokens.behavior_logprobs is not None and tokens.advantages is not None
        return clipped_policy_loss(tokens.logprobs, tokens.behavior_logprobs, tokens.advantages, self.config.clip)

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.behavior_logprobs is not None
        policy, clipped = self.surrogate(tokens)
        metrics = {
            "clip_fraction": clipped,
            "behavior_kl": (tokens.behavior_logprobs - tokens.logprobs).detach(),
        }
        if self.config.entropy_coef:
            policy = policy - self.config.entropy_coef * entropy(tokens.log_probs)
        if self.kl_target and self.config.kl_form not in _REWARD_FORMS and tokens.kl_weight is not None:
            name, divergence = self.token_kl(tokens)
            acts = tokens.kl_weight > 0
            # Means over all tokens, 0 where the gate is closed: divided by the share they are means over the open ones.
            metrics |= {f"gated_{name}": torch.zeros_like(tokens.logprobs), "gated_share": acts.float()}
            if divergence is not None:
                policy = policy + tokens.kl_weight * divergence
                metrics[f"gated_{name}"] = torch.where(acts, divergence.detach(), 0.0)
        terms = {"policy": policy}
        if tokens.values is not None and Need.VALUES in self.needs:
            assert tokens.old_values is not None and tokens.returns is not None
            terms["value"] = clipped_value_loss(
                tokens.values, tokens.old_values, tokens.returns, self.config.value_clip
            )
        return TokenLoss(terms, metrics)

    def token_kl(self, tokens: TokenBatch) -> tuple[str, Tensor | None]:
        """Name and value [n] of the KL's estimate as a loss; None where the other model read none of the tokens."""
        names: dict[str, str] = {"k1-token": "k1", "k2-loss": "k2", "k3-loss": "k3"}
        name = names[self.config.kl_form]
        other = self.other_logprobs(tokens)
        if other is None:
            return name, None
        assert tokens.behavior_logprobs is not None
        if name == "k1":
            ratio = (tokens.logprobs - tokens.behavior_logprobs).exp()
            return name, ratio * k1(tokens.behavior_logprobs, other)
        return name, 0.5 * k1(tokens.logprobs, other) ** 2 if name == "k2" else k3(tokens.logprobs, other)
