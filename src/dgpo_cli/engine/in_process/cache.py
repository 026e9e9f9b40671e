"""Keys and values of every slot: one row per slot, written and read in place.

On a CPU the whole cache is an address range without memory: the system gives a page where a token is stored, and takes
it back where an episode ends. Elsewhere the cache is reallocated for more rows or longer ones, in a few large steps.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from dgpo_cli.engine.in_process.sizes import aligned, grown
from dgpo_cli.errors import ConfigError

_LINUX = sys.platform == "linux"
_NORESERVE = 0x4000 if _LINUX else 0  # Python's mmap does not name it


class SlotCache:
    """Keys and values [rows, heads, capacity, head_dim] of each layer; entries beyond a row's length are never read.

    There is room for `slots` rows of `capacity` tokens once `make_room` was asked for it. Raises ConfigError where
    there are no addresses for them on a CPU.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._slots, self._limit = slots, capacity
        self._heads, self._width, self._device, self._dtype = heads, head_dim, device, dtype
        self._pages: mmap.mmap | None = None
        self.keys = [self._made(0, 0) for _ in range(layers)]
        self.values = list(self.keys)
        if device.type == "cpu":
            self._map(layers)

    @property
    def capacity(self) -> int:
        """Tokens of a row that there is room for."""
        return self.keys[0].shape[2]

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    def make_room(self, rows: int, tokens: int) -> None:
        """Ensure rows of so many tokens; stored entries are kept, and move if there was no room."""
        if rows <= self.rows and tokens <= self.capacity:
            return
        rows, tokens = grown(max(rows, self.rows), max(tokens, self.capacity), slots=self._slots, capacity=self._limit)
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                stored[layer] = self._made(rows, tokens)
                stored[layer][: old.shape[0], :, : old.shape[2]] = old

    def release(self, row: int, length: int = 0) -> None:
        """Return the memory of a row beyond `length` to the system, where that is possible."""
        if self._pages is None:
            return
        item = self._dtype.itemsize
        of_head = self.capacity * self._width * item
        of_row = self._heads * of_head
        tail = length * self._width * item
        parts = [(0, of_row)] if not length else [(h * of_head + tail, (h + 1) * of_head) for h in range(self._heads)]
        for layer in range(2 * len(self.keys)):
            start = (layer * self._slots + row) * of_row
            for first, end in parts:
                first, end = -(-(start + first) // mmap.PAGESIZE), (start + end) // mmap.PAGESIZE
                if first < end:
                    self._pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Indices [N * heads] of the heads of N tokens at (row, position) in a layer, for `write`."""
        head = torch.arange(self._heads, device=rows.device)
        return ((rows[:, None] * self._heads + head) * self.capacity + positions[:, None]).flatten()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [N, heads, head_dim] of N tokens."""
        for stored, new in ((self.keys, keys), (self.values, values)):
            width = new.shape[-1]
            stored[layer].view(-1, width).index_copy_(0, places, new.reshape(-1, width).to(self._dtype))

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` entries of rows to other rows; all sources are read before a target is written."""
        source, target = (torch.tensor(rows, device=self._device) for rows in (sources, targets))
        for layer in (*self.keys, *self.values):
            layer[target, :, :length] = layer[source, :, :length]

    def addresses(self) -> tuple[int, ...]:
        """Addresses of the cache; captured graphs are invalid once these change."""
        return self.keys[0].data_ptr(), self.keys[0].numel()

    def _made(self, rows: int, tokens: int) -> Tensor:
        return torch.zeros(rows, self._heads, tokens, self._width, device=self._device, dtype=self._dtype)

    def _map(self, layers: int) -> None:
        shape = (2 * layers, self._slots, self._heads, aligned(self._limit), self._width)
        size = self._dtype.itemsize * torch.Size(shape).numel()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        try:
            pages = mmap.mmap(-1, size, flags=flags)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"a rollout cache of {self._slots} episodes of {self._limit} tokens has no room here "
                f"({size / 2**30:.1f} GiB of addresses): {error}",
                hint="fewer episodes at once (-o rollout.wave, --batch-size) or shorter ones (-o rollout.max_tokens)",
            ) from error
        if _LINUX:  # other systems may keep the pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)  # a page of 2 MiB would hold the ends of many rows
            self._pages = pages
        mapped = torch.frombuffer(pages, dtype=self._dtype).view(shape)
        self.keys, self.values = list(mapped[:layers]), list(mapped[layers:])
