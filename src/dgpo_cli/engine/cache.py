"""Keys and values of every slot: one row per slot, written and read in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SlotCache:
    """Keys and values [layers, rows, heads, capacity, head_dim]; what lies beyond a row's length is never seen."""

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layers, rows, heads, capacity, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        return self.keys.shape[3]

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where the heads of N tokens at (row, position) lie in a layer, [N * heads], for `write`."""
        heads, capacity = self.keys.shape[2:4]
        head = torch.arange(heads, device=rows.device)
        return ((rows[:, None] * heads + head) * capacity + positions[:, None]).flatten()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [N, heads, head_dim] of N tokens."""
        for stored, new in ((self.keys, keys), (self.values, values)):
            width = new.shape[-1]
            stored[layer].view(-1, width).index_copy_(0, places, new.reshape(-1, width).to(stored.dtype))

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` entries of rows to other rows; all sources are read before a target is written."""
        source, target = (torch.tensor(rows, device=self.keys.device) for rows in (sources, targets))
        for stored in (self.keys, self.values):
            stored[:, target, :, :length] = stored[:, source, :, :length]
