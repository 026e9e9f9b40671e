"""SeqKD (Kim & Rush 2016): maximum likelihood on sequences that the teacher wrote."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_cli.objectives.base import Need, Objective, TokenBatch, TokenLoss


class SeqKD(Objective):
    """Loss per token: -log p(token)."""

    formulas = r"""
        loss of a token: \ell_t = -\log \pi_\theta(y_t)
    """

    @dataclass(frozen=True)
    class Config:
        pass

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def loss(self, tokens: TokenBatch) -> TokenLoss:
        return TokenLoss({"policy": -tokens.logprobs})
