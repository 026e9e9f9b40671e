"""PPO (Schulman et al. 2017) as in Search-R1 (arXiv 2503.09516): a KL to the starting policy inside the reward.

The reward of the last written token is the episode's; every written token pays kl_coef times k1 against the
reference. Deviation from the reference: only written tokens enter the advantages, whitening and value loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.advantage import clipped_policy_loss, clipped_value_loss, gae, k1
from dgpo_cli.objectives.base import Credit, Episode, Need, Objective, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import entropy, log_probs

_RECIPE = "reference recipe (arXiv 2508.20324, train_dgpo.sh)"


class PPO(Objective):
    """Terms per token: "policy" = clipped surrogate - entropy_coef * entropy, "value" = clipped squared error / 2."""

    @dataclass(frozen=True)
    class Config:
        clip: float = field(
            default=0.2,
            metadata={"source": _RECIPE, "help": "the probability ratio counts within 1 - clip and 1 + clip"},
        )
        value_clip: float = field(
            default=0.5, metadata={"source": _RECIPE, "help": "how far from its old value a value counts"}
        )
        gamma: float = field(default=1.0, metadata={"source": _RECIPE, "help": "discount per written token"})
        lam: float = field(default=1.0, metadata={"source": _RECIPE, "help": "lambda of generalized advantages"})
        entropy_coef: float = field(default=0.001, metadata={"source": _RECIPE, "help": "weight of the entropy bonus"})
        kl_coef: float = field(
            default=0.001, metadata={"source": _RECIPE, "help": "weight of the KL to the reference, or to the teacher"}
        )

        def __post_init__(self) -> None:
            for name, low, high in (
                ("clip", 0.0, 1.0),
                ("value_clip", 0.0, float("inf")),
                ("gamma", 0.0, 1.0),
                ("lam", 0.0, 1.0),
                ("entropy_coef", 0.0, float("inf")),
                ("kl_coef", 0.0, float("inf")),
            ):
                value = getattr(self, name)
                if not low <= value <= high:
                    raise ConfigError(f"{name} = {value} is out of range", hint=f"give {name} from {low:g} to {high:g}")

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        reference = {Need.REFERENCE_LOGPROBS} if self.config.kl_coef else set()
        return frozenset({Need.REWARD, Need.VALUES} | reference)

    def reward_penalty(self, episode: Episode) -> Tensor:
        """What each token pays inside the reward [L], if it is written."""
        if not self.config.kl_coef:
            return torch.zeros_like(episode.behavior_logprobs)
        assert episode.reference_logprobs is not None
        return self.config.kl_coef * k1(episode.behavior_logprobs, episode.reference_logprobs)

    def kl_loss_weight(self, episode: Episode) -> float:
        """Weight of a full-distribution KL in the loss of every written token of the episode."""
        return 0.0

    def token_rewards(self, episode: Episode) -> Tensor:
        """Reward per token [L]: minus its penalty, and the score on the last written token."""
        rewards = torch.where(episode.written, -self.reward_penalty(episode), 0.0)
        places = episode.written.nonzero()
        if len(places):  # not on the last token of all: credit assignment skips what was not written
            rewards[int(places[-1])] += episode.score.total
        return rewards

    def credit(self, episodes: Sequence[Episode]) -> list[Credit]:
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
                kl_weight=self.kl_loss_weight(episode),
                metrics={"reward_penalty": float(self.reward_penalty(episode)[episode.written].sum())},
            )
            for row, episode in enumerate(episodes)
        ]

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.behavior_logprobs is not None and tokens.advantages is not None
        policy, clipped = clipped_policy_loss(
            tokens.logprobs, tokens.behavior_logprobs, tokens.advantages, self.config.clip
        )
        spread = entropy(log_probs(tokens.logits))
        metrics = {
            "entropy": spread.detach(),
            "clip_fraction": clipped,
            "behavior_kl": (tokens.behavior_logprobs - tokens.logprobs).detach(),
        }
        if self.config.entropy_coef:
            policy = policy - self.config.entropy_coef * spread
        terms = {"policy": policy}
        if tokens.values is not None:
            assert tokens.old_values is not None and tokens.returns is not None
            terms["value"] = clipped_value_loss(
                tokens.values, tokens.old_values, tokens.returns, self.config.value_clip
            )
        return TokenLoss(terms, metrics)
