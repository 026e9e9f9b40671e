"""FlashAttention's variable-length kernel, called as this release of PyTorch requires.

Releases differ in what the call takes. With `enable_gqa` several heads of queries share one of keys and values by that
argument. Without it the kernel is given a few tokens first, forwards and backwards: it either takes grouped heads as
they are and agrees with the way that repeats them, or keys and values are repeated for every head of queries.
"""

from __future__ import annotations

import inspect
from enum import Enum
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_WANTED = {"scale", "window_size"}  # arguments that every call here gives


class Grouping(Enum):
    """How heads of queries that share keys and values reach the kernel."""

    ARGUMENT = "by its argument"
    AS_THEY_ARE = "as they are"
    REPEATED = "with keys and values repeated"


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the kernel runs on a device and its call takes the arguments that it gets here."""
    return (
        device.type == "cuda"
        and find_spec("torch.nn.attention.varlen") is not None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and _arguments() >= _WANTED
    )


def varlen(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int, *, scale: float | None, window: tuple[int, int]
) -> Tensor:
    """Attention [M, heads, D] inside sequences of queries [M, heads, D] to keys and values [M, shared heads, D].

    `boundaries` [B + 1] int32 is where each of the B sequences begins, and M; `longest` tokens of one. `window` says
    how many tokens before and after its own a query sees, -1 for all.
    """
    way = grouping(q.device, q.dtype) if q.shape[1] != k.shape[1] else Grouping.AS_THEY_ARE
    return _call(way, q, k, v, boundaries, longest, scale, window)


@cache
def grouping(device: torch.device, dtype: torch.dtype) -> Grouping:
    """The cheapest correct grouping on a device, found by a trial call where the signature does not show it."""
    if "enable_gqa" in _arguments():
        return Grouping.ARGUMENT
    found = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        boundaries = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
        for way in (Grouping.REPEATED, Grouping.AS_THEY_ARE):
            q, k, v = (_waves(heads, device, dtype) for heads in (4, 2, 2))
            try:
                out = _call(way, q, k, v, boundaries, 5, None, (-1, 0))
                torch.autograd.backward(out.float().square().sum())
            except (RuntimeError, ValueError):
                if way is Grouping.REPEATED:  # then the kernel itself does not work here
                    raise
                return Grouping.REPEATED
            found.append((out, q.grad, k.grad, v.grad))
    repeated, grouped = found
    agree = all(_near(a, b) for a, b in zip(grouped, repeated, strict=True))
    return Grouping.AS_THEY_ARE if agree else Grouping.REPEATED


def _near(found: Tensor | None, expected: Tensor | None) -> bool:
    """Up to roundings of 16 bit; heads that are paired wrongly differ by as much as they are."""
    if found is None or expected is None or found.shape != expected.shape:
        return False
    return float((found.float() - expected.float()).detach().norm()) < 0.05 * float(expected.float().detach().norm())


def _call(
    way: Grouping,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    from torch.nn.attention import varlen as module

    if way is Grouping.REPEATED:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    grouped: dict[str, Any] = {"enable_gqa": True} if way is Grouping.ARGUMENT else {}
    out = module.varlen_attn(
        q, k, v, boundaries, boundaries, longest, longest, scale=scale, window_size=window, **grouped
    )
    assert isinstance(out, Tensor), type(out)
    return out


def _arguments() -> frozenset[str]:
    from torch.nn.attention import varlen as module

    return frozenset(inspect.signature(module.varlen_attn).parameters)


def _waves(heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Eight tokens [8, heads, 64] that differ by token, head and place."""
    made = torch.arange(8 * heads * 64, dtype=torch.float32, device=device).mul(0.37 * heads).sin()
    return made.view(8, heads, 64).to(dtype).requires_grad_()
