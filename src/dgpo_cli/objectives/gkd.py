"""GKD (Agarwal et al. 2024): generalized JSD to the teacher on a mixture of teacher-written and student-written text.

Of each step's sequences the share `student_share` (the paper's lambda) is written by the student in the search loop, on
the questions of the stored trajectories; the rest are those trajectories, or with `seq_kd` ones that the teacher
generates at each step. Deviations from TRL's implementation: one draw per sequence (it draws per micro-batch), and
tokens are counted after the student has written (it counts those of the data set). Interior values of beta give a loss
and gradients 5 to 15 times smaller than the ends: the learning rate has to follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.core.config import setting
from dgpo_cli.objectives.base import Need, Objective, TokenBatch, TokenLoss
from dgpo_cli.objectives.divergence import generalized_jsd

_PAPER = "Agarwal et al. 2024, table A.1"


class GKD(Objective):
    """Loss per token: beta * KL(T || M) + (1 - beta) * KL(S || M), M = beta * T + (1 - beta) * S."""

    formulas = r"""
        loss of a token: \ell_t = \beta \operatorname{KL}(\pi_T \,\|\, M)_t + (1 - \beta) \operatorname{KL}(\pi_\theta
            \,\|\, M)_t
        mixture: M = \beta\, \pi_T + (1 - \beta)\, \pi_\theta
    """

    @dataclass(frozen=True)
    class Config:
        beta: float = setting(
            0.5, "0 is KL(teacher || student), 1 KL(student || teacher)", source=_PAPER, range="up to 1"
        )
        student_share: float = setting(
            0.5, "share of the sequences that the student writes", source=_PAPER, range="up to 1"
        )
        seq_kd: bool = setting(False, "the teacher generates the others at every step", source="TRL")

    config: Config

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER_DISTRIBUTION})

    @property
    def on_policy(self) -> bool:
        return self.config.student_share > 0

    @property
    def student_fraction(self) -> float:
        return self.config.student_share

    @property
    def teacher_writes(self) -> bool:
        return self.config.seq_kd

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        assert tokens.teacher_log_probs is not None
        divergence = generalized_jsd(tokens.teacher_log_probs, tokens.log_probs, self.config.beta)
        return TokenLoss({"policy": divergence}, {"generalized_jsd": divergence.detach()})
