"""Divergences between next-token distributions: log-probabilities [n, V] in, nats per token [n] out, in float32.

A token without probability under p adds nothing and gets no gradient, also where its log-probability is -inf: the
product 0 * -inf would be NaN in the value or, if masked only after the product, in the gradient. KL and entropy have
their derivative written out, because autograd would keep four tensors [n, V] for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dgpo_cli.objectives.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the vocabulary, float32."""
    return (logits.float() / temperature).log_softmax(dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q); infinite where q excludes a token of p."""
    from dgpo_cli.objectives.kl_gradient import KL

    return KL.apply(log_p, log_q)  # type: ignore[no-any-return, no-untyped-call]


def entropy(log_p: Tensor) -> Tensor:
    return -kl(log_p, log_p.new_zeros(()))


def mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Log-probabilities of share * p + (1 - share) * q; -inf, without a gradient, where both are."""
    first, second = log_p + _log(share), log_q + _log(1 - share)
    outside = torch.isneginf(first) & torch.isneginf(second)
    inside = torch.logaddexp(torch.where(outside, 0.0, first), torch.where(outside, 0.0, second))
    return torch.where(outside, -torch.inf, inside)


def generalized_jsd(log_teacher: Tensor, log_student: Tensor, beta: float) -> Tensor:
    """beta * KL(T || M) + (1 - beta) * KL(S || M) with M = beta * T + (1 - beta) * S (Agarwal et al. 2024, eq. 1).

    It vanishes at both ends; there the limits after division by beta and by 1 - beta stand instead, as in the
    published code: KL(T || S) for 0, KL(S || T) for 1.
    """
    if beta == 0:
        return kl(log_teacher, log_student)
    if beta == 1:
        return kl(log_student, log_teacher)
    middle = mixture(log_teacher, log_student, beta)
    return beta * kl(log_teacher, middle) + (1 - beta) * kl(log_student, middle)


def skew_forward_kl(log_teacher: Tensor, log_student: Tensor, alpha: float) -> Tensor:
    """KL(T || alpha * T + (1 - alpha) * S) (Ko et al. 2024, eq. 5)."""
    return kl(log_teacher, mixture(log_teacher, log_student, alpha))


def skew_reverse_kl(log_teacher: Tensor, log_student: Tensor, alpha: float) -> Tensor:
    """KL(S || alpha * S + (1 - alpha) * T) (Ko et al. 2024)."""
    return kl(log_student, mixture(log_student, log_teacher, alpha))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the sum of absolute differences of the probabilities, from 0 to 1."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
