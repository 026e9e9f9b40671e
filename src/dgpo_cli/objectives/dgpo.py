"""DGPO (arXiv 2508.20324): PPO whose KL points at the teacher, and only where the answer was wrong.

`kl_form` k1-reward is the reference: the log-ratio of the sampled token inside the reward, so a later token's
divergence is credited to earlier ones. `full-loss` puts the exact KL(student || teacher) at every written token into
the loss instead: the gradient of the per-token reverse KL at the visited states, without sampling noise.
Deviations from the reference: the gate is on correctness (the reference asks for a reward below 0.1), and only written
tokens count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgpo_cli.core.types import Score
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.advantage import k1
from dgpo_cli.objectives.base import Episode, Need, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import kl, log_probs
from dgpo_cli.objectives.ppo import PPO

KL_FORMS = ("k1-reward", "full-loss")
KL_GATES = ("wrong", "always", "never")


class DGPO(PPO):
    """PPO's terms; the KL to the teacher sits in the reward (k1-reward) or in the "policy" term (full-loss)."""

    @dataclass(frozen=True)
    class Config(PPO.Config):
        kl_form: str = field(default="k1-reward", metadata={"source": "paper", "help": " or ".join(KL_FORMS)})
        kl_gate: str = field(
            default="wrong", metadata={"source": "paper", "help": "episodes that follow the teacher: " + ", ".join(KL_GATES)}
        )

        def __post_init__(self) -> None:
            for name, allowed in (("kl_form", KL_FORMS), ("kl_gate", KL_GATES)):
                if getattr(self, name) not in allowed:
                    raise ConfigError(f"{name} = {getattr(self, name)!r}", hint=f"choose one of: {', '.join(allowed)}")

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
        if tokens.teacher_logits is None:
            return result
        assert tokens.kl_weight is not None
        divergence = kl(log_probs(tokens.logits), log_probs(tokens.teacher_logits))
        result.terms["policy"] = result.terms["policy"] + tokens.kl_weight * divergence
        result.metrics["gated_reverse_kl"] = torch.where(tokens.kl_weight > 0, divergence.detach(), 0.0)
        return result
