"""Divergences between next-token distributions: log-probabilities [n, V] in, nats per token [n] out, in float32.

A token without probability under p adds nothing and gets no gradient, also where its log-probability is -inf: the
product 0 * -inf would be NaN in the value or, if masked only after the product, in the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the vocabulary, float32."""
    return (logits.float() / temperature).log_softmax(dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q); infinite where q excludes a token of p."""
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)


def entropy(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(dim=-1)
