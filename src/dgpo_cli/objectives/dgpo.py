"""DGPO (arXiv 2508.20324): PPO whose KL points at the teacher, and only where the answer was wrong.

`kl_form` k1-reward is the reference: the log-ratio of the sampled token inside the reward, so a later token's
divergence is credited to earlier ones. `full-loss` puts the exact KL(student || teacher) at every written token into
the loss instead: the gradient of the per-token reverse KL at the visited states, without sampling noise. The other
forms are those of `ppo`, whose page states the gradient of each.
Deviations from the reference: the gate is on correctness (the reference asks for a reward below 0.1), and only written
tokens count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo_cli.core.config import setting
from dgpo_cli.core.types import Score
from dgpo_cli.objectives.base import Need, ScoredEpisode, TokenBatch
from dgpo_cli.objectives.divergence import kl
from dgpo_cli.objectives.ppo import PPO

if TYPE_CHECKING:
    from torch import Tensor


class DGPO(PPO):
    """Terms and formulas of `ppo`, with the KL to the teacher in the reward (k1-reward) or in the loss (full-loss)."""

    formulas = r"""
        reward of a token, kl_form k1-reward: r_t = R\, [t = L] - \beta\, g\, \log
            \frac{\pi_{\text{old}}(y_t)}{\pi_T(y_t)}
        added to the loss of a token, kl_form full-loss: \beta\, g \operatorname{KL}(\pi_\theta \,\|\, \pi_T)_t
        gate (always 1 with kl_gate always, always 0 with never): g = [\text{the episode's answer is wrong}]
    """

    @dataclass(frozen=True)
    class Config(PPO.Config):
        kl_form: Literal["k1-reward", "k3-reward", "k1-token", "k2-loss", "k3-loss", "full-loss"] = setting(  # type: ignore[assignment]
            "k1-reward",
            "log-ratio of the sampled token in the reward, the exact KL as a loss, or another estimate",
            source="reference recipe (arXiv 2508.20324, train_dgpo.sh); full-loss is ours",
        )
        kl_gate: Literal["wrong", "always", "never"] = setting(
            "wrong", "which episodes follow the teacher, by their answer", source="arXiv 2508.20324"
        )

    config: Config

    @property
    def kl_target(self) -> Need | None:
        if not self.config.kl_coef or self.config.kl_gate == "never":
            return None
        return Need.TEACHER_DISTRIBUTION if self.config.kl_form == "full-loss" else Need.TEACHER_LOGPROBS

    def kl_applies(self, score: Score) -> bool:
        return self.config.kl_gate == "always" or (self.config.kl_gate == "wrong" and not score.correct)

    def other_logprobs(self, of: ScoredEpisode | TokenBatch) -> Tensor | None:
        return of.teacher_logprobs

    def token_kl(self, tokens: TokenBatch) -> tuple[str, Tensor | None]:
        if self.kl_target is not Need.TEACHER_DISTRIBUTION:
            return super().token_kl(tokens)
        if tokens.teacher_log_probs is None:
            return "reverse_kl", None
        return "reverse_kl", kl(tokens.log_probs, tokens.teacher_log_probs)
