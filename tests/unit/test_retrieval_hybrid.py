"""Reciprocal rank fusion by hand, and the hybrid retriever as the fusion of the two that it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.hybrid import HybridConfig, fuse
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.open import open_index

RANKINGS = st.lists(st.permutations(range(8)).map(lambda rows: rows[:5]), min_size=1, max_size=3)


def test_fusion_by_hand() -> None:
    rows, scores = fuse([np.array([7, 3, 5]), np.array([3, 9])], 60, 10)
    assert rows.tolist() == [3, 7, 9, 5]
    assert scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])
    rows, scores = fuse([np.array([4, 2]), np.array([2, 4])], 60, 1)
    assert rows.tolist() == [2], "equal sums come in row order"
    assert fuse([np.zeros(0, dtype=np.int64)] * 2, 60, 3)[0].tolist() == []


@given(rankings=RANKINGS, k=st.integers(1, 9))
def test_fusion_agrees_with_a_dictionary(rankings: list[list[int]], k: int) -> None:
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            sums[row] = sums.get(row, 0.0) + 1 / (60 + rank)
    expected = sorted(sums, key=lambda row: (-sums[row], row))[:k]
    assert fuse([np.array(r) for r in rankings], 60, k)[0].tolist() == expected


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    corpus = write_corpus(folder / "towns.jsonl")
    dense = {"encoder": str(make_encoder(folder / "encoder")), "max_length": 40}
    build_index(corpus, folder / "bm25", settings={"k1": 0.9})
    build_index(corpus, folder / "dense", retriever="dense", settings=dense)
    build_index(corpus, folder / "hybrid", retriever="hybrid", settings={"bm25": {"k1": "0.9"}, "dense": dense})
    return folder


def test_hybrid_is_the_fusion_of_the_two_it_holds(indexes: Path) -> None:
    queries = ["the mayor Mira Holt", "weavers", "zzzz", " ", "river in the north"]
    lexical, dense, hybrid = (
        open_index(indexes / name).retriever.search(queries, 5) for name in ("bm25", "dense", "hybrid")
    )
    for ours, *parts in zip(hybrid, lexical, dense, strict=True):
        sums: dict[str, float] = {}
        for part in parts:
            for hit in part:
                sums[hit.passage.id] = sums.get(hit.passage.id, 0.0) + 1 / (60 + hit.rank)
        assert [hit.passage.id for hit in ours] == sorted(sums, key=lambda name: (-sums[name], name))
        assert [hit.score for hit in ours] == pytest.approx(sorted(sums.values(), reverse=True))
    assert hybrid[3] == []
    assert len(hybrid[2]) == 5, "what has no word of the query is found by its meaning"


def test_the_manifest_tells_both_and_the_command_that_makes_it_again(indexes: Path) -> None:
    manifest = read_manifest(indexes / "hybrid")
    assert manifest.settings["bm25"]["k1"] == 0.9
    assert manifest.state["dense"]["factory"] == "Flat"
    command = manifest.rebuild_command(indexes / "hybrid")
    assert "--retriever hybrid -o bm25.k1=0.9 -o dense.encoder=" in command
    with pytest.raises(ConfigError, match="depth = 0"):
        HybridConfig(depth=0)


@pytest.mark.parametrize(
    ("file", "content"),
    [("vectors.npy", np.zeros((5, 16), dtype=np.float32)), ("bm25s/indptr.csc.index.npy", np.zeros(3, dtype=np.int32))],
)
def test_either_half_is_checked_when_it_is_opened(indexes: Path, file: str, content: np.ndarray) -> None:
    path = indexes / "hybrid" / file
    before = path.read_bytes()
    try:
        np.save(path, content)
        with pytest.raises(RetrievalError, match=path.name):
            open_index(indexes / "hybrid")
    finally:
        path.write_bytes(before)
