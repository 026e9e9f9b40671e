"""Sequences laid end to end through a model of transformers: no padding, attention inside each sequence only.

Everything in a transformer but attention treats tokens one by one, so M tokens of many sequences go through it as one
row. Attention runs sequence by sequence: by FlashAttention's variable-length kernel where it can (CUDA, 16 bit), else
by one causal call for sequences of one length in a row. Neither ever builds a mask; a block-diagonal one costs M^2
entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from dgpo_cli.models.varlen import has_kernel, varlen

_NAME = "dgpo_packed"


@dataclass(frozen=True, slots=True)
class Packed:
    """B sequences of `lengths`, M tokens in all, on one device."""

    input_ids: Tensor  # [M]
    positions: Tensor  # [M] from 0 in every sequence
    boundaries: Tensor  # [B + 1] int32, where each sequence begins, and M
    lengths: list[int]

    @classmethod
    def of(cls, sequences: Sequence[Tensor], device: torch.device) -> Packed:
        """Raises ValueError if there is no sequence; all of them have to hold a token."""
        if not sequences:
            raise ValueError("nothing to pack")
        lengths = [len(sequence) for sequence in sequences]
        positions = torch.cat([torch.arange(length) for length in lengths])
        boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(torch.cat(list(sequences)).to(device), positions.to(device), boundaries.to(device), lengths)

    def attention_arguments(self) -> dict[str, Any]:
        """Arguments that a model passes on to `attend`."""
        return {"lengths": self.lengths, "boundaries": self.boundaries}


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use attention inside sequences during a pass over packed ones; a rollout engine has its own attention."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def attend(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    lengths: list[int],
    boundaries: Tensor,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention [1, M, heads, D] of queries [1, heads, M, D] to keys and values of their own sequence."""
    if value.dtype in (torch.float16, torch.bfloat16) and not dropout and has_kernel(value.device):
        # Under autocast the rotary embedding leaves queries and keys in float32.
        q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # [M, heads, D]
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        return varlen(q, k, v, boundaries, max(lengths), scale=scaling, window=window)[None], None
    # Sequences of one length in a row share a call: on a CPU a short sequence's own costs more than its arithmetic.
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    parts = []
    rows = [length * count for length, count in runs]
    for (length, count), *run in zip(runs, *(torch.split(x, rows, dim=2) for x in (query, key, value)), strict=True):
        q, k, v = (x[0].unflatten(1, (count, length)).transpose(0, 1) for x in run)  # [count, heads, length, D]
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if sliding_window is None else _band(length, sliding_window, q.device),
            is_causal=sliding_window is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [count * length, heads, D]
    return torch.cat(parts)[None], None


def _band(length: int, window: int, device: torch.device) -> Tensor:
    places = torch.arange(length, device=device)
    back = places[:, None] - places[None, :]
    return (back >= 0) & (back < window)


AttentionInterface.register(_NAME, attend)
