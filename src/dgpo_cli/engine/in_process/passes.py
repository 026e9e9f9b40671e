"""The input of a forward pass of a rollout: new tokens of many rows, and the keys that each of them sees.

Token ids, rows, starts and counts go from the host to the device in one copy; positions and masks are made
there from it, in a number of operators that does not depend on the number of rows.

Shapes: N new tokens, R rows, W rows of the cache that attention looks at, K keys seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dgpo_cli.engine.in_process.sizes import aligned


@dataclass(frozen=True, slots=True)
class Single:
    """One query per row. `rows` [R] is None where they are the cache's first W rows in order."""

    window: int  # W
    rows: Tensor | None
    hidden_keys: Tensor  # [W, 1, 1, K], 0 for a key that is seen and -inf for one that is not


@dataclass(frozen=True, slots=True)
class Several:
    """`tokens` queries of `size` rows, padded to `width` Q of the longest."""

    rows: Tensor  # [R]
    places: Tensor  # [tokens] index of each among the R * Q padded ones
    hidden_keys: Tensor  # [R, 1, Q, K]
    size: int
    width: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Pass:
    """New tokens, row by row: first rows with one token, then rows with several, group by group."""

    ids: Tensor  # [N]
    rows: Tensor  # [N]
    positions: Tensor  # [N]
    singles: int  # rows with one new token
    single: Single | None  # of those rows
    several: Sequence[Several]
    last: Tensor | None  # [R] index of each row's last token among the N; None where every row has one
    final: Single  # of every row's last token

    @classmethod
    def of(
        cls,
        new: Sequence[Sequence[int]],
        rows: Sequence[int],
        starts: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Pass:
        """`new` tokens of cache rows that hold `starts` tokens; those with one new token come first, then by length.

        `dtype` is that of the masks.
        """
        counts, total = np.array([len(ids) for ids in new]), sum(map(len, new))
        told = np.fromiter(chain(chain.from_iterable(new), rows, starts, counts), np.int64, total + 3 * len(counts))
        ids, row, start, count = torch.split(torch.from_numpy(told).to(device), [total, *(3 * [len(counts)])])
        ends = count.cumsum(0)
        singles = int((counts == 1).sum())
        groups = _groups(counts[singles:], singles)
        within = torch.arange(total, device=device) - (ends - count).repeat_interleave(count, output_size=total)
        lasts = np.array(starts) + counts - 1

        def one(rows_of: slice, places: Tensor) -> Single:
            return _single(np.array(rows)[rows_of], row[rows_of], places, int(lasts[rows_of].max()), dtype)

        first = slice(0, singles)
        return cls(
            ids=ids,
            rows=row.repeat_interleave(count, output_size=total),
            positions=start.repeat_interleave(count, output_size=total) + within,
            singles=singles,
            single=one(first, start[first]) if singles and groups else None,
            several=[_several(row[g], start[g], count[g], counts[g], int(lasts[g].max()), dtype) for g in groups],
            last=ends - 1 if groups else None,
            final=one(slice(None), start + count - 1),
        )

    @classmethod
    def of_window(cls, ids: Tensor, positions: Tensor, keys: int, dtype: torch.dtype) -> Pass:
        """One new token [W] at `positions` [W] of each of the first W rows, made of device tensors alone."""
        return cls(
            ids=ids,
            rows=torch.arange(len(ids), device=ids.device),
            positions=positions,
            singles=len(ids),
            single=None,
            several=(),
            last=None,
            final=Single(len(ids), None, _hidden(positions, keys, dtype)[:, None, None, :]),
        )


def _groups(counts: np.ndarray, offset: int) -> list[slice]:
    """Runs of an ascending list in which padding to the longest at most doubles a row."""
    groups, first = [], 0
    for i in range(1, len(counts) + 1):
        if i == len(counts) or counts[i] > 2 * counts[first]:
            groups.append(slice(offset + first, offset + i))
            first = i
    return groups


def _hidden(places: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """[..., K]: 0 for keys up to a query's place, -inf beyond it."""
    beyond = torch.arange(keys, device=places.device) > places[..., None]
    return torch.zeros(beyond.shape, device=places.device, dtype=dtype).masked_fill_(beyond, -torch.inf)


def _single(known: np.ndarray, rows: Tensor, places: Tensor, longest: int, dtype: torch.dtype) -> Single:
    window = int(known.max()) + 1
    in_order = len(known) == window and bool((known == np.arange(window)).all())
    # Unused rows in between see one key; their output is discarded.
    place = places if in_order else places.new_zeros(window).index_copy_(0, rows, places)
    hidden = _hidden(place, aligned(longest + 1), dtype)
    return Single(window, None if in_order else rows, hidden[:, None, None, :])


def _several(
    rows: Tensor, starts: Tensor, count: Tensor, counts: np.ndarray, longest: int, dtype: torch.dtype
) -> Several:
    size, width, tokens = len(counts), int(counts.max()), int(counts.sum())
    places = starts[:, None] + torch.minimum(torch.arange(width, device=rows.device), count[:, None] - 1)  # [R, Q]
    # Behind the padding of the rows before.
    before = torch.arange(size, device=rows.device) * width - (count.cumsum(0) - count)
    return Several(
        rows,
        torch.arange(tokens, device=rows.device) + before.repeat_interleave(count, output_size=tokens),
        _hidden(places, aligned(longest + 1), dtype)[:, None],
        size,
        width,
        tokens,
    )
