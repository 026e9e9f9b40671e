"""Exact search on a GPU: a matrix product in half precision, in the process that trains.

The product finds candidates. Its error is bounded, so every row within the bound of the k-th best is scored again in
double precision, and the ranking is that of an exact search over the same vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from dgpo_cli.retrieval.dense.vectors import ExactSearch, best_of

if TYPE_CHECKING:
    import torch

# Half precision rounds query and product by 2^-11 each, the k-th best like the rest; and as much again for sums that a
# GPU splits and adds up in half precision. For unit vectors.
_NOISE = 8 * 2.0**-11
_CHUNK = 1 << 18  # rows scored at once
_QUERIES = 128  # queries scored at once: their scores of a chunk take 64 MiB
_SHARE = 0.6  # of the free memory of the GPU, which the vectors may stay in; the rest is for models and their caches


class DeviceSearch:
    """Inner products with unit vectors [N, H] in half precision, on any torch device.

    The vectors stay on the device where they fit, and go to it chunk by chunk for every search where they do not.
    """

    def __init__(self, vectors: np.ndarray, device: torch.device) -> None:
        self._vectors, self._device = vectors, device
        self._kept: list[tuple[int, torch.Tensor]] | None = None
        if vectors.nbytes <= _room(device):
            self._kept = list(self._moved())

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query [n, H] rows and scores of the `k` best, best first, equal ones in row order."""
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for start, chunk in self._moved() if self._kept is None else self._kept:
            for first in range(0, len(queries), _QUERIES):
                part = self._candidates(queries[first : first + _QUERIES], chunk, k)
                for place, (rows, scores) in enumerate(part, start=first):
                    found[place].append((rows + start, scores))
        return [best_of(parts, k) for parts in found]

    def _candidates(self, queries: np.ndarray, chunk: torch.Tensor, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per query of [n, H] rows and scores of all that may be among the `k` best of the chunk, in row order."""
        import torch

        asked = torch.from_numpy(queries).to(self._device)
        rough = (asked.half() @ chunk.T).float()  # [n, chunk]
        least = rough.topk(min(k, len(chunk)), dim=1).values[:, -1:] - _NOISE
        places, rows = (rough >= least).nonzero(as_tuple=True)  # by query, then by row
        ends = torch.bincount(places, minlength=len(asked)).cumsum(0).tolist()
        for query, begin, end in zip(asked.double(), [0, *ends], ends, strict=False):
            # Row by row in double precision, so that equal vectors have equal scores wherever they stand.
            scores = (chunk[rows[begin:end]].double() * query).sum(dim=1)
            yield rows[begin:end].cpu().numpy(), scores.cpu().numpy()

    def _moved(self) -> Iterator[tuple[int, torch.Tensor]]:
        import torch

        for start in range(0, len(self._vectors), _CHUNK):
            # A copy: torch wants memory that it might write to, and the file is mapped for reading.
            yield start, torch.from_numpy(np.array(self._vectors[start : start + _CHUNK])).to(self._device)


def exact_search(vectors: np.ndarray, device: torch.device) -> ExactSearch | DeviceSearch:
    """The one that is faster there: a CPU multiplies single precision faster than half."""
    return ExactSearch(vectors) if device.type == "cpu" else DeviceSearch(vectors, device)


def _room(device: torch.device) -> int:
    """Bytes that vectors may take on the device. Nothing is kept on a CPU, which has them in its file cache."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0] * _SHARE) if device.type == "cuda" else 0
