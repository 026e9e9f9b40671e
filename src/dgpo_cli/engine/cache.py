"""Key-value cache with one row per slot. Rows are kept contiguous for the model by swapping them in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Keys and values [layers, rows, heads, capacity, head_dim]; the model writes through a window of rows.

    `window(first, last, positions)` says which rows the next forward pass is about and where its tokens go; `update`
    then stores the new keys and values there and returns everything up to the longest row of the window.
    """

    def __init__(
        self, config: PreTrainedConfig, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(layers=[])
        heads = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, heads, capacity, head_dim)
        self.stored_keys = torch.zeros(shape, device=device, dtype=dtype)
        self.stored_values = torch.zeros(shape, device=device, dtype=dtype)
        self._rows = slice(0, 0)
        self._index = torch.zeros(0, dtype=torch.long)  # [R, 1, Q, 1]
        self._length = 0

    def window(self, rows: slice, positions: Tensor, length: int) -> None:
        """`positions` [R, Q] of the new tokens, `length` the number of keys that attention sees."""
        self._rows, self._length = rows, length
        self._index = positions[:, None, :, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [R, heads, Q, head_dim] and return [R, heads, length, head_dim]."""
        keys = self.stored_keys[layer_idx, self._rows]
        values = self.stored_values[layer_idx, self._rows]
        index = self._index.expand(key_states.shape)
        keys.scatter_(2, index, key_states.to(keys.dtype))
        values.scatter_(2, index, value_states.to(values.dtype))
        seen = (keys[:, :, : self._length], values[:, :, : self._length])
        return seen[0].to(key_states.dtype), seen[1].to(value_states.dtype)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` entries of two rows."""
        for stored in (self.stored_keys, self.stored_values):
            kept = stored[:, first, :, :length].clone()
            stored[:, first, :, :length] = stored[:, second, :, :length]
            stored[:, second, :, :length] = kept
