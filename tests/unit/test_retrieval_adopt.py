"""Taking over a faiss index: the same answers as encoding, and a refusal of every file that is not the right one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig
from dgpo_cli.retrieval.index import import_faiss
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.open import open_index

COUNT = 120
TEXTS = [f"{WORDS[n % len(WORDS)]} {WORDS[n * 7 % len(WORDS)]} {WORDS[n * n % len(WORDS)]} town" for n in range(COUNT)]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoded(encoder_folder: Path) -> np.ndarray:
    return Encoder(EncoderConfig(encoder=str(encoder_folder), max_length=40)).encode(TEXTS, "")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "c.jsonl", (Passage(str(n), text) for n, text in enumerate(TEXTS)))


@pytest.fixture
def take_over(tmp_path: Path, corpus: Path, encoder_folder: Path) -> Callable[..., Any]:
    def run(index: Any, out: str = "taken", retriever: str = "dense", **changed: Any) -> Any:
        faiss.write_index(index, str(tmp_path / "f.index"))
        settings = {"encoder": str(encoder_folder), "max_length": 40} | changed
        given = settings if retriever == "dense" else {"dense": settings}
        build_index(corpus, tmp_path / out, retriever=retriever, settings=given, from_faiss=tmp_path / "f.index")
        return open_index(tmp_path / out)

    return run


def filled(vectors: np.ndarray, factory: str = "Flat", metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    index = faiss.index_factory(vectors.shape[1], factory, metric)
    index.train(vectors)
    index.add(vectors)
    return index


QUERIES = ["the mayor of a town", "river", "novel by Mira"]


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_a_flat_index_is_what_encoding_makes(
    take_over: Callable[..., Any],
    corpus: Path,
    tmp_path: Path,
    encoder_folder: Path,
    encoded: np.ndarray,
    retriever: str,
) -> None:
    taken = take_over(filled(encoded), retriever=retriever)
    settings: dict[str, Any] = {"encoder": str(encoder_folder), "max_length": 40}
    own = settings if retriever == "dense" else {"dense": settings}
    build_index(corpus, tmp_path / "own", retriever=retriever, settings=own)
    ours = open_index(tmp_path / "own")
    np.testing.assert_array_equal(np.load(tmp_path / "taken" / "vectors.npy"), encoded.astype(np.float16))
    for mine, theirs in zip(ours.retriever.search(QUERIES, 5), taken.retriever.search(QUERIES, 5), strict=True):
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-3)
    dense = taken.manifest.state.get("dense", taken.manifest.state)
    assert dense["adopted"] == {"sample": COUNT, "own_row": 1.0, "cosine": 1.0}
    assert "truncated_passages" not in dense, "nobody knows"
    assert f"--from-faiss {tmp_path}/f.index --overwrite" in taken.manifest.rebuild_command(tmp_path / "taken")


def test_the_vectors_of_a_flat_index_may_be_compressed(
    take_over: Callable[..., Any], corpus: Path, tmp_path: Path, encoder_folder: Path, encoded: np.ndarray
) -> None:
    taken = take_over(filled(encoded), factory="IVF4,SQ8")
    settings = {"encoder": str(encoder_folder), "max_length": 40, "factory": "IVF4,SQ8"}
    own, _ = build_index(corpus, tmp_path / "own", retriever="dense", settings=settings)
    assert taken.manifest.state["measured"] == own.state["measured"]
    assert taken.manifest.files.keys() == {"faiss.index", "passages.jsonl", "offsets.npy"}


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IVF4,SQ8", "SQ8", "PQ8x4", "HNSW8", "IDMap,Flat"])
def test_any_other_index_is_used_as_it_is(
    take_over: Callable[..., Any], tmp_path: Path, encoded: np.ndarray, factory: str
) -> None:
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(encoded)
    index.add_with_ids(encoded, np.arange(COUNT)) if factory.startswith("IDMap") else index.add(encoded)
    taken = take_over(index)
    assert (tmp_path / "taken" / "faiss.index").read_bytes() == (tmp_path / "f.index").read_bytes()
    assert taken.manifest.state["factory"].startswith("Index")
    if factory.startswith("IVF"):
        measured = taken.manifest.state["measured"]
        assert measured["of_all_lists"] >= 0.95
        faiss.extract_index_ivf(index).nprobe = measured["nprobe"]
    encoder = taken.retriever._encoder
    rows = index.search(encoder.encode(QUERIES, encoder.conventions.query_prefix), 5)[1]
    for query, found in zip(taken.retriever.search(QUERIES, 5), rows, strict=True):
        assert sorted(hit.passage.id for hit in query) == sorted(str(row) for row in found)


def test_lines_of_no_use_have_rows_in_a_flat_index(
    take_over: Callable[..., Any], corpus: Path, tmp_path: Path, encoder_folder: Path, encoded: np.ndarray
) -> None:
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join(["broken", *lines[:50], lines[3], '{"id": "e", "contents": ""}', *lines[50:]]) + "\n")
    with_all = np.insert(encoded, [0, 50, 50], encoded[[7]], axis=0)
    assert len(with_all) == COUNT + 3
    taken = take_over(filled(with_all))
    np.testing.assert_array_equal(np.load(tmp_path / "taken" / "vectors.npy"), encoded.astype(np.float16))
    assert (taken.manifest.passages, taken.manifest.skipped) == (COUNT, 3)
    with pytest.raises(InputError, match="3 lines of the corpus are of no use, and no row can be taken out"):
        take_over(filled(with_all, "SQ8"), "other")
    assert take_over(filled(encoded, "SQ8"), "other").manifest.passages == COUNT, "built over the usable lines"


def test_a_wrong_file_is_refused_with_the_reason(
    take_over: Callable[..., Any], tmp_path: Path, encoder_folder: Path, encoded: np.ndarray
) -> None:
    generator = np.random.default_rng(0)
    stranger = Encoder(EncoderConfig(encoder=str(make_encoder(tmp_path / "stranger", seed=3)), max_length=40))
    other = stranger.encode(TEXTS, "")
    assert other.shape == encoded.shape
    with pytest.raises(InputError, match=r"holds 119 vectors, the corpus 120 passages"):
        take_over(filled(encoded[:-1]))
    with pytest.raises(InputError, match=r"vectors of 8 numbers, the encoder gives 16"):
        take_over(filled(encoded[:, :8].copy()))
    for vectors in (other, encoded[generator.permutation(COUNT)], np.roll(encoded, 1, axis=0)):
        for factory in ("Flat", "IVF4,SQ8", "HNSW8", "IDMap,Flat"):
            index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add_with_ids(vectors, np.arange(COUNT)) if factory[0:2] == "ID" else index.add(vectors)
            with pytest.raises(InputError, match=r"is not by this encoder over these passages: .*% lie at their"):
                take_over(index)
    with pytest.raises(InputError, match="does not compare by inner product"):
        take_over(filled(encoded, metric=faiss.METRIC_L2))
    with pytest.raises(InputError, match=r"vectors of length 3, and queries"):
        take_over(filled(3 * encoded))
    with pytest.raises(InputError, match=r"was encoded in another way: the median cosine .* is 0\.\d+, below 0\.99"):
        moved = encoded + 0.3 * np.linalg.svd(encoded)[2][-1]  # all in one direction, so every row stays its own best
        take_over(filled(moved / np.linalg.norm(moved, axis=1, keepdims=True)))
    assert not (tmp_path / "taken").exists()


def test_what_is_no_faiss_file_is_refused(
    take_over: Callable[..., Any], corpus: Path, tmp_path: Path, encoder_folder: Path, encoded: np.ndarray
) -> None:
    settings = {"encoder": str(encoder_folder), "max_length": 40}

    def refused(content: bytes, match: str, **changed: Any) -> None:
        (tmp_path / "x.index").write_bytes(content)
        with pytest.raises((InputError, ConfigError), match=match):
            build_index(
                corpus,
                tmp_path / "i",
                retriever="dense",
                settings=settings | changed,
                from_faiss=tmp_path / "x.index",
            )

    faiss.write_index(filled(encoded), str(tmp_path / "f.index"))
    whole = (tmp_path / "f.index").read_bytes()
    refused(b"", "is no faiss index")
    refused(b"\x80\x04not an index at all, perhaps a pickle", "is no faiss index")
    refused(whole[: len(whole) // 2], "is no faiss index, or a part of one")
    faiss.write_index(filled(encoded, "SQ8"), str(tmp_path / "f.index"))
    refused((tmp_path / "f.index").read_bytes(), "whose vectors are compressed, so IVF4,SQ8 cannot", factory="IVF4,SQ8")
    with pytest.raises(ConfigError, match="--from-faiss has no effect on bm25"):
        build_index(corpus, tmp_path / "i", from_faiss=tmp_path / "f.index")
    with pytest.raises(InputError, match="no such file"):
        build_index(corpus, tmp_path / "i", retriever="dense", settings=settings, from_faiss=tmp_path / "none")
    assert not (tmp_path / "i").exists()


def test_a_file_on_another_disk_is_copied(
    take_over: Callable[..., Any], tmp_path: Path, encoded: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(import_faiss.os, "link", refuse)
    take_over(filled(encoded, "SQ8"))
    copied = tmp_path / "taken" / "faiss.index"
    assert copied.stat().st_nlink == 1
    shutil.rmtree(tmp_path / "taken")
    monkeypatch.undo()
    take_over(filled(encoded, "SQ8"))
    assert copied.stat().st_nlink == 2, "no second copy on the same disk"
    assert read_manifest(tmp_path / "taken").passages == COUNT
