"""DGPO (arXiv 2508.20324): PPO whose KL points at the teacher, and only where the answer was wrong.

`kl_form` k1-reward is the reference: the log-ratio of the sampled token inside the reward, so a later token's
divergence is credited to earlier ones. `full-loss` puts the exact KL(student || teacher) at every written token into
the loss instead: the gradient of the per-token reverse KL at the visited states, without sampling noise.
Deviations from the reference: the gate is on correctness (the reference asks for a reward below 0.1), and only written
tokens count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dgpo_cli.core.types import Score
from dgpo_cli.objectives.advantage import k1
from dgpo_cli.objectives.base import Episode, Need, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import kl, log_probs
from dgpo_cli.objectives.ppo import PPO


class DGPO(PPO):
    """PPO's terms; the KL to the teacher sits in the reward (k1-reward) or in the "policy" term (full-loss)."""

    @dataclass(frozen=True)
    class Config(PPO.Config):
        kl_form: Literal["k1-reward", "full-loss"] = field(
            default="k1-reward",
            metadata={
                "source": "reference recipe (arXiv 2508.20324, train_dgpo.sh); full-loss is ours",
                "help": "log-ratio of the sampled token in the reward, or the exact KL as a loss",
            },
        )
        kl_gate: Literal["wrong", "always", "never"] = field(
            default="wrong",
            metadata={"source": "arXiv 2508.20324", "help": "which episodes follow the teacher, by their answer"},
        )

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        needs = {Need.REWARD, Need.VALUES}
        if self.config.kl_coef and self.config.kl_gate != "never":
            needs.add(Need.TEACHER_LOGPROBS if self.config.kl_form == "k1-reward" else Need.TEACHER_DISTRIBUTION)
        return frozenset(needs)

    def wants_teacher(self, score: Score) -> bool:
        return self.config.kl_gate == "always" or (self.config.kl_gate == "wrong" and not score.correct)

    def reward_penalty(self, episode: Episode) -> Tensor:
        if Need.TEACHER_LOGPROBS not in self.needs or not self.wants_teacher(episode.score):
            return torch.zeros_like(episode.behavior_logprobs)
        assert episode.teacher_logprobs is not None
        return self.config.kl_coef * k1(episode.behavior_logprobs, episode.teacher_logprobs)

    def kl_loss_weight(self, episode: Episode) -> float:
        follows = Need.TEACHER_DISTRIBUTION in self.needs and self.wants_teacher(episode.score)
        return self.config.kl_coef if follows else 0.0

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        result = super().loss(tokens)
        if Need.TEACHER_DISTRIBUTION not in self.needs or tokens.teacher_logits is None:
            return result
        assert tokens.kl_weight is not None
        follows = tokens.kl_weight > 0
        divergence = torch.where(follows, kl(log_probs(tokens.logits), log_probs(tokens.teacher_logits)), 0.0)
        result.terms["policy"] = result.terms["policy"] + tokens.kl_weight * divergence
        # A mean over all tokens, 0 where the gate is shut: divided by the share it is the mean where it is open.
        result.metrics["gated_reverse_kl"] = divergence.detach()
        result.metrics["gated_share"] = follows.float()
        return result
