"""Approximate search by any faiss index (Johnson et al. 2017), and its recall relative to exact search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dgpo_cli.core.progress import Progress
from dgpo_cli.errors import ConfigError

FLAT = "Flat"
RECALL_AT = 10
# Defaults by size. Exact search takes about 0.1 s a query at the first limit on two cores; eight bits a number keep
# nearly all of the ranking, and above the second limit even they no longer fit into a laptop's memory.
EXACT_UP_TO = 500_000
EIGHT_BITS_UP_TO = 5_000_000
_DIMENSIONS_PER_BYTE = 8  # of a product quantizer
_TRAINED_ON = 1 << 18  # vectors, or
_PER_LIST = 40  # for every list, about the least that faiss's clustering asks for
_ADDED_AT_ONCE = 1 << 16
_ENOUGH = 0.95  # recall at which no more lists are probed


@dataclass(frozen=True, slots=True)
class Measured:
    """`recall`: the share of the exact best RECALL_AT that the index finds, over `sample` queries."""

    nprobe: int | None  # lists that a query looks into; None where the index has none
    recall: float
    sample: int


class VectorSearch(Protocol):
    def search(self, queries: np.ndarray, k: int, /) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query [n, H] rows and scores of the `k` best, best first."""
        ...


def default_factory(rows: int, dimensions: int) -> str:
    """A faiss factory string that suits a corpus of `rows` passages."""
    if rows <= EXACT_UP_TO:
        return FLAT
    lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
    if rows <= EIGHT_BITS_UP_TO or dimensions % _DIMENSIONS_PER_BYTE:
        return f"IVF{lists},SQ8"
    return f"IVF{lists},PQ{dimensions // _DIMENSIONS_PER_BYTE}"


def empty_index(factory: str, rows: int, dimensions: int) -> Any:
    """A faiss index by its factory string, for `rows` vectors that it has not seen yet.

    Raises ConfigError for a string that faiss does not take, or with more lists than there are vectors.
    """
    import faiss

    with _told(factory, rows, dimensions):
        index = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        if (nlist(index) or 0) > rows:
            raise RuntimeError(f"{nlist(index):,} lists for {rows:,} vectors")
    return index


def build_compressed(vectors: np.ndarray, factory: str, progress: Progress | None = None) -> Any:
    """A faiss index by its factory string over `vectors` [N, H], trained on an even sample of them.

    Raises ConfigError as `empty_index`, and for a string that needs more passages to be trained.
    """
    rows, dimensions = vectors.shape
    index = empty_index(factory, rows, dimensions)
    if not index.is_trained:
        sample = _evenly(rows, max(_TRAINED_ON, _PER_LIST * (nlist(index) or 0)))
        with _told(factory, rows, dimensions):
            index.train(vectors[sample].astype(np.float32))
    for start in range(0, rows, _ADDED_AT_ONCE):
        index.add(vectors[start : start + _ADDED_AT_ONCE].astype(np.float32))
        if progress is not None:
            progress(min(start + _ADDED_AT_ONCE, rows), rows)
    return index


def measure(index: Any, exact: VectorSearch, queries: np.ndarray, nprobe: int | None) -> Measured:
    """Recall of `index` for `queries` [n, H]. Without `nprobe`, probes double until the recall is enough."""
    best = [set(rows.tolist()) for rows, _ in exact.search(queries, RECALL_AT)]
    lists = nlist(index)
    tried = min(nprobe or 1, lists or 1)
    while True:
        set_probes(index, tried)
        recall = _recall(index, queries, best)
        if lists is None or nprobe is not None or recall >= _ENOUGH or tried >= lists:
            return Measured(None if lists is None else tried, recall, len(queries))
        tried = min(2 * tried, lists)


def set_probes(index: Any, nprobe: int | None) -> None:
    import faiss

    if nprobe is not None and nlist(index) is not None:
        faiss.extract_index_ivf(index).nprobe = nprobe


def _recall(index: Any, queries: np.ndarray, exact: list[set[int]]) -> float:
    rows = index.search(queries, RECALL_AT)[1]
    return float(
        np.mean([len(best & set(found.tolist())) / len(best) for best, found in zip(exact, rows, strict=True)])
    )


@contextmanager
def _told(factory: str, rows: int, dimensions: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].rpartition("' failed: ")[2] or repr(error)
        raise ConfigError(
            f"factory = {factory!r} cannot be built over {rows:,} vectors of {dimensions}: {reason}",
            hint="give a faiss factory string such as IVF256,SQ8 (fewer lists than passages), Flat or auto",
        ) from error


def nlist(index: Any) -> int | None:
    """How many lists the index is divided into, None for an index without."""
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    return None if inverted is None else int(inverted.nlist)


def _evenly(rows: int, wanted: int) -> np.ndarray:
    return np.linspace(0, rows - 1, min(rows, wanted)).astype(np.int64)
