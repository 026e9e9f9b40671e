"""KL(p || q) with its derivative written out: autograd would keep four tensors [n, V] for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KL(torch.autograd.Function):
    """KL(p || q) [n]; d / d log p(v) = p(v) (log p(v) - log q(v) + 1), d / d log q(v) = -p(v)."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        p = log_p.exp()
        ctx.save_for_backward(log_p, log_q, p)
        return _gap(log_p, log_q, p).mul_(p).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_p, log_q, p = ctx.saved_tensors
        first = _gap(log_p, log_q, p).add_(1).mul_(p).mul_(grad[..., None]) if ctx.needs_input_grad[0] else None
        second = p.mul_(-grad[..., None]) if ctx.needs_input_grad[1] else None
        return first, second


def _gap(log_p: Tensor, log_q: Tensor, p: Tensor) -> Tensor:
    return (log_p - log_q).masked_fill_(p == 0, 0.0)
