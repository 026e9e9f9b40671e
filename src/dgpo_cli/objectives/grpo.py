"""GRPO (Shao et al. 2024) and its variants: PPO's surrogate with rewards compared inside a group, without a critic.

`variant` names a published combination; every part of it can be set by itself:
grpo: rewards standardized in their group, mean over sequences of token means, k3 loss to the reference.
dr_grpo (Liu et al. 2025): centred only, tokens summed and divided by a constant length, no KL.
dapo (Yu et al. 2025): clip 0.2 / 0.28, dual clip 10, token mean, groups without a difference replaced, no KL.
gspo (Zheng et al. 2025): one ratio per sequence, its geometric token mean, clip 3e-4 / 4e-4, no KL.
rloo (Ahmadian et al. 2024): the mean of the others is the baseline, tokens summed, k1 to the reference in the reward.
Lengths count written tokens only. The paper reports that GRPO collapses in compact models (arXiv 2508.20324).
Deviation from DAPO: its penalty on overlong answers acts on the number of written tokens and is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgpo_cli.core.config import setting
from dgpo_cli.errors import ConfigError
from dgpo_cli.objectives.advantage import clipped_policy_loss, group_advantages
from dgpo_cli.objectives.base import Credit, Need, ScoredEpisode, TokenBatch
from dgpo_cli.objectives.deferred import torch
from dgpo_cli.objectives.ppo import PPO

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage": "centred", "reduction": "constant", "kl_coef": 0.0},
    "dapo": {
        "reduction": "tokens",
        "clip_high": 0.28,
        "dual_clip": 10.0,
        "replace_uninformative": True,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
    },
    "gspo": {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0},
    "rloo": {"advantage": "leave-one-out", "reduction": "constant", "kl_form": "k1-reward"},
}
_VARIANT = "the variant"
_SEARCH_R1 = "Search-R1, train_grpo.sh"


class GRPO(PPO):
    """Term per token: "policy" = clipped surrogate of the group's advantage - entropy bonus + KL."""

    formulas = r"""
        loss of a token: \ell_t = -\min(\rho_t A,\ \operatorname{clip}(\rho_t, 1 - \epsilon, 1 +
            \epsilon_{\text{high}})\, A) - c_H \operatorname{H}(\pi_\theta)_t + \beta\, (e^{-r_t} - 1 + r_t), \quad
            r_t = \log \frac{\pi_\theta(y_t)}{\pi_0(y_t)}
        probability ratio: \rho_t = \frac{\pi_\theta(y_t)}{\pi_{\text{old}}(y_t)}
        advantage of every token of an episode: A = \frac{R - \operatorname{mean}(R_1, \ldots,
            R_G)}{\operatorname{std}(R_1, \ldots, R_G) + 10^{-6}}
        loss of a step, reduction sequences: \frac{1}{S} \sum_{\text{episodes}} \frac{1}{L} \sum_t \ell_t
    """

    @dataclass(frozen=True)
    class Config(PPO.Config):
        variant: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo"] = setting(
            "grpo", "sets the defaults of the other settings", source=_SEARCH_R1
        )
        kl_form: Literal["k1-reward", "k3-reward", "k1-token", "k2-loss", "k3-loss"] = setting(
            "k3-loss", "how the KL is estimated, and where it acts", source=_SEARCH_R1
        )
        advantage: Literal["standardized", "centred", "leave-one-out"] = setting(
            "standardized", "how a reward is compared with its group", source=_VARIANT
        )
        reduction: Literal["sequences", "tokens", "constant"] = setting(
            "sequences", "mean of sequence means, of tokens, or sum / constant_length", source=_VARIANT
        )
        constant_length: int = setting(
            2000, "tokens that a full sequence has", source="ours, four turns of 500", range="positive"
        )
        ratio: Literal["token", "sequence"] = setting(
            "token", "what the probability ratio is taken over", source=_VARIANT
        )
        clip_high: float | None = setting(None, "upper clip; that of `clip` by default", source=_VARIANT, range="bound")
        dual_clip: float | None = setting(None, "bound on the cost of a negative advantage", source=_VARIANT)
        replace_uninformative: bool = setting(
            False, "other questions for groups all right or all wrong", source=_VARIANT
        )
        overlong_from: int | None = setting(
            None, "written tokens from which length is penalized", source="Yu et al. 2025, eq. 13"
        )
        overlong_to: int = setting(2000, "written tokens that cost 1", source="ours, four turns of 500")

        def __post_init__(self) -> None:
            if self.dual_clip is not None and self.dual_clip <= 1:
                raise ConfigError(f"dual_clip = {self.dual_clip} bounds every cost", hint="give a number above 1")
            if self.overlong_from is not None and not 0 <= self.overlong_from < self.overlong_to:
                raise ConfigError(
                    f"overlong_from = {self.overlong_from}, overlong_to = {self.overlong_to}",
                    hint="the penalty rises from 0 at the former to 1 at the latter, so it must be the smaller one",
                )

    config: Config
    whitens_advantages = False
    default_samples = 5  # Search-R1, train_grpo.sh

    @classmethod
    def configure(cls, options: dict[str, object]) -> dict[str, object]:
        """The options, with those of their variant as defaults."""
        return VARIANTS.get(str(options.get("variant", "grpo")), {}) | options

    @property
    def needs(self) -> frozenset[Need]:
        needs = {Need.REWARD} | ({self.kl_target} if self.kl_target else set())
        return frozenset(needs | ({Need.SEQUENCE_LOG_RATIO} if self.config.ratio == "sequence" else set()))

    @property
    def replaces_uninformative(self) -> bool:
        return self.config.replace_uninformative

    def denominator(self, weight: float, sequences: int) -> float:
        return sequences * self.config.constant_length if self.config.reduction == "constant" else weight

    def credit(self, episodes: Sequence[ScoredEpisode]) -> list[Credit]:
        lengths = [int(episode.written.sum()) for episode in episodes]
        penalties = [float(self.reward_penalty(episode)[episode.written].sum()) for episode in episodes]
        totals = [
            episode.score.total - penalty - self.overlong_penalty(length)
            for episode, penalty, length in zip(episodes, penalties, lengths, strict=True)
        ]
        worth = group_advantages(torch.tensor(totals), [e.group for e in episodes], self.config.advantage)
        by_sequence = self.config.reduction == "sequences"
        return [
            Credit(
                torch.where(episode.written, worth[row], 0.0),
                kl_weight=self.kl_loss_weight(episode),
                weight=1 / max(1, length) if by_sequence else 1.0,
                metrics={"reward_penalty": penalty},
            )
            for row, (episode, penalty, length) in enumerate(zip(episodes, penalties, lengths, strict=True))
        ]

    def overlong_penalty(self, length: int) -> float:
        start, end = self.config.overlong_from, self.config.overlong_to
        return 0.0 if start is None else min(1.0, max(0.0, (length - start) / (end - start)))

    def surrogate(self, tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        assert tokens.behavior_logprobs is not None and tokens.advantages is not None
        behavior = tokens.behavior_logprobs
        if self.config.ratio == "sequence":
            # The value of the sequence's ratio, with the gradient of the token's own log-probability.
            assert tokens.sequence_log_ratio is not None
            behavior = tokens.logprobs.detach() - tokens.sequence_log_ratio
        return clipped_policy_loss(
            tokens.logprobs,
            behavior,
            tokens.advantages,
            self.config.clip,
            clip_high=self.config.clip_high,
            dual_clip=self.config.dual_clip,
        )
