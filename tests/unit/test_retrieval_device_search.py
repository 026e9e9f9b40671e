"""Exact search by a half-precision product, on the CPU with the code of a GPU, against faiss Flat."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.dense import device_search
from dgpo_cli.retrieval.dense.device_search import DeviceSearch, exact_search
from dgpo_cli.retrieval.dense.vectors import ExactSearch
from dgpo_cli.retrieval.device import device, use_device

CPU = torch.device("cpu")


def unit(rows: int, dimensions: int, seed: int, spread: float = 1.0) -> np.ndarray:
    """`spread` below 1 puts all vectors near each other, as encoders do, so that scores lie close."""
    generator = np.random.default_rng(seed)
    found = generator.normal(size=dimensions) + spread * generator.normal(size=(rows, dimensions))
    normalized: np.ndarray = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return normalized


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_ranks_are_those_of_faiss_flat_up_to_ties(
    monkeypatch: pytest.MonkeyPatch, resident: bool, spread: float
) -> None:
    monkeypatch.setattr(device_search, "_CHUNK", 700)
    monkeypatch.setattr(device_search, "_QUERIES", 7)
    monkeypatch.setattr(device_search, "_room", lambda _: 1 << 40 if resident else 0)
    vectors = unit(3_000, 64, 0, spread).astype(np.float16)
    vectors[[5, 1_500, 2_999]] = vectors[700]
    queries = np.concatenate([unit(20, 64, 1, spread), vectors[700:701].astype(np.float32)])
    flat = faiss.IndexFlatIP(64)
    flat.add(vectors.astype(np.float32))
    scores, rows = flat.search(queries, 10)
    found = DeviceSearch(vectors, CPU).search(queries, 10)
    assert len(found) == len(queries)
    for (our_rows, our_scores), their_rows, their_scores in zip(found, rows, scores, strict=True):
        np.testing.assert_allclose(our_scores, their_scores, atol=2e-6)
        for place, (ours, theirs) in enumerate(zip(our_rows, their_rows, strict=True)):
            tie = np.isclose(their_scores, their_scores[place], atol=2e-6)
            assert ours == theirs or tie.sum() > 1 or place == 9
    assert found[-1][0][:4].tolist() == [5, 700, 1_500, 2_999], "equal ones in row order"


def test_it_finds_what_the_exact_search_of_a_cpu_finds() -> None:
    vectors, queries = unit(500, 32, 2, 0.2).astype(np.float16), unit(9, 32, 3, 0.2)
    for k in (1, 10, 500):
        for (rows, scores), (same, equal) in zip(
            DeviceSearch(vectors, CPU).search(queries, k), ExactSearch(vectors).search(queries, k), strict=True
        ):
            assert rows.tolist() == same.tolist()
            np.testing.assert_allclose(scores, equal, atol=1e-12)
    rough = np.argsort(-(queries.astype(np.float16) @ vectors.T), axis=1)[:, :10]
    exact = [rows.tolist() for rows, _ in ExactSearch(vectors).search(queries, 10)]
    assert rough.tolist() != exact, "half precision alone ranks otherwise"


def test_the_device_is_chosen() -> None:
    vectors = unit(5, 8, 0).astype(np.float16)
    assert isinstance(exact_search(vectors, CPU), ExactSearch)
    try:
        use_device("cpu")
        assert device() == CPU
        with pytest.raises(ConfigError, match="device 'nonsense' is none"):
            use_device("nonsense")
        assert device() == CPU
        use_device("cuda:99")
        with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used"):
            device()
        use_device("auto")
        assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        use_device("auto")


def test_each_of_several_processes_searches_on_the_gpu_that_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after `open_index` has said `auto` once more, as it does in every run."""
    on = 0

    def move(number: int) -> None:
        nonlocal on
        on = number

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", move)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: on)
    use_device("auto", local_rank=6)
    use_device("auto")
    assert device() == torch.device("cuda", 2)
    move(3)  # as the training's launcher does
    assert device() == torch.device("cuda", 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    vectors, queries = unit(50_000, 256, 2, 0.2).astype(np.float16), unit(40, 256, 3, 0.2)
    ours = exact_search(vectors, torch.device("cuda")).search(queries, 10)
    for (rows, _), (same, _) in zip(ours, ExactSearch(vectors).search(queries, 10), strict=True):
        assert rows.tolist() == same.tolist()
