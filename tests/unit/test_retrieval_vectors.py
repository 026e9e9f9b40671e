"""Vectors on disk: exact search, shards that survive a kill, and compressed indexes against exact search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.retrieval_corpora import TOWNS, stored, write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense import approximate, vectors
from dgpo_cli.retrieval.dense.approximate import RECALL_AT, build_compressed, default_factory, measure, set_probes
from dgpo_cli.retrieval.dense.encoder import Encoder
from dgpo_cli.retrieval.dense.retriever import DenseConfig
from dgpo_cli.retrieval.dense.vectors import ExactSearch, encode_passages, open_vectors
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.check import check_integrity
from dgpo_cli.retrieval.index.parts import build_part
from dgpo_cli.retrieval.open import open_index


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def unit_vectors(rows: int, seed: int = 0, clusters: int = 12) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, 16))
    found = centres[generator.integers(clusters, size=rows)] + 0.4 * generator.normal(size=(rows, 16))
    normalized: np.ndarray = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return normalized


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_exact_search_agrees_with_sorting_all(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(vectors, "_CHUNK", 7)
    monkeypatch.setattr(vectors, "_IN_MEMORY", in_memory)
    passages = unit_vectors(50).astype(np.float16)
    passages[[3, 20, 49]] = passages[10]  # equal scores, in several chunks
    queries = np.concatenate([unit_vectors(5, seed=1), passages[10:11].astype(np.float32)])
    search = ExactSearch(passages)
    for k in (1, 3, 50):
        for query, (rows, scores) in zip(queries, search.search(queries, k), strict=True):
            expected = passages.astype(np.float32) @ query
            order = sorted(range(50), key=lambda row: (-round(float(expected[row]), 5), row))[:k]
            assert rows.tolist() == order
            assert scores == pytest.approx(expected[order], abs=1e-6)
    assert search.search(queries, 3)[5][0].tolist() == [3, 10, 20]


def test_shards_that_are_there_are_not_encoded_again(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SHARD", 2)
    config = DenseConfig(encoder=str(encoder_folder), max_length=40)
    long = Passage("long", '"Long"\n' + "river " * 60)
    undisturbed = stored(tmp_path / "a", [long, *TOWNS])
    encoder = Encoder(config)
    assert encode_passages(tmp_path / "a", undisturbed, encoder, config, None) == 1
    whole = (tmp_path / "a" / vectors.FILE).read_bytes()
    assert open_vectors(tmp_path / "a", 6).dtype == np.float16

    encoded: list[int] = []

    class Stopped(Encoder):
        def encode(self, texts: Any, prefix: str) -> np.ndarray:
            if len(encoded) == 2:
                raise KeyboardInterrupt
            encoded.append(len(texts))
            return super().encode(texts, prefix)

    store = stored(tmp_path / "b", [long, *TOWNS])
    with pytest.raises(KeyboardInterrupt):
        encode_passages(tmp_path / "b", store, Stopped(config), config, None)
    encoded.clear()
    assert encode_passages(tmp_path / "b", store, Stopped(config), config, None) == 1, "counted by the first build"
    assert encoded == [2]
    assert (tmp_path / "b" / vectors.FILE).read_bytes() == whole
    encoded.clear()
    with pytest.raises(KeyboardInterrupt):  # with another setting nothing of it is used
        other = DenseConfig(encoder=str(encoder_folder), max_length=20)
        encode_passages(tmp_path / "b", store, Stopped(other), other, None)
    assert encoded == [2, 2]


def test_what_a_killed_build_left_with_a_flipped_bit_is_encoded_again(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the vectors, in the record beside them (also where that is no JSON, or no text), or in what all are of."""
    monkeypatch.setattr(vectors, "SHARD", 2)
    config = DenseConfig(encoder=str(encoder_folder), max_length=40)
    store = stored(tmp_path / "a", [Passage("long", "river " * 60), *TOWNS])
    encoder = Encoder(config)
    assert encode_passages(tmp_path / "a", store, encoder, config, None) == 1
    whole = (tmp_path / "a" / vectors.FILE).read_bytes()
    files = sorted((tmp_path / "a" / "shards").iterdir())
    assert len(files) == 3 + 3 + 1
    for file in files:
        written = file.read_bytes()
        places = range(0, len(written), 2) if file.name == f"{0:012}.json" else (0, len(written) // 2, len(written) - 1)
        for at in places:
            for bit in (1, 128):
                file.write_bytes(written[:at] + bytes([written[at] ^ bit]) + written[at + 1 :])
                assert encode_passages(tmp_path / "a", store, encoder, config, None) == 1, (file.name, at)
                assert (tmp_path / "a" / vectors.FILE).read_bytes() == whole
                file.write_bytes(written)


@pytest.mark.slow
def test_kill_at_any_shard_then_the_same_command_gives_the_same_index(tmp_path: Path, encoder_folder: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), f"{WORDS[n]} {WORDS[-n]} town") for n in range(20)))
    code = (
        "import os, signal, sys; from pathlib import Path; from dgpo_cli.retrieval.dense import vectors\n"
        "from dgpo_cli.retrieval.index import build\n"
        "vectors.SHARD = 3\n"
        "def kill(done, total):\n"
        "    if done == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "settings = {'encoder': sys.argv[4], 'max_length': 40, 'factory': 'IVF2,SQ8'}\n"
        "build.build_index(Path(sys.argv[1]), Path(sys.argv[2]), retriever='dense', settings=settings, progress=kill)\n"
    )

    def run(out: Path, kill_at: int) -> int:
        argv = [sys.executable, "-c", code, str(corpus), str(out), str(kill_at), str(encoder_folder)]
        return subprocess.run(argv, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode

    for kill_at in (3, 9, 18):
        assert run(tmp_path / "index", kill_at) == -signal.SIGKILL
        assert not (tmp_path / "index").exists()
    shards = tmp_path / ".index.writing" / "shards"
    assert len(list(shards.glob("*.npy"))) == 6
    assert run(tmp_path / "index", -1) == run(tmp_path / "other", -1) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "index", "other"]
    ours, undisturbed = (open_index(tmp_path / name) for name in ("index", "other"))
    assert ours.manifest is not None
    assert undisturbed.manifest is not None
    assert {n: asdict(f) for n, f in ours.manifest.files.items()} == {
        n: asdict(f) for n, f in undisturbed.manifest.files.items()
    }
    assert ours.manifest.state == undisturbed.manifest.state
    assert ours.retriever.search(["river town"], 5) == undisturbed.retriever.search(["river town"], 5)


def test_what_an_unfinished_dense_build_left_does_not_get_into_another_index(
    tmp_path: Path, encoder_folder: Path
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    with pytest.raises(ConfigError, match=r"factory = 'PQ4' cannot be built over 5 vectors of 16: .*training points"):
        settings = {"encoder": str(encoder_folder), "max_length": 40, "factory": "PQ4"}
        build_index(corpus, tmp_path / "i", retriever="dense", settings=settings)
    assert [p.name for p in (tmp_path / ".i.writing").iterdir()] == ["shards"]
    build_index(corpus, tmp_path / "i")
    assert not (tmp_path / ".i.writing").exists()
    assert not (tmp_path / "i" / "shards").exists()


def test_the_default_follows_the_size() -> None:
    assert default_factory(10_000, 768) == "Flat"
    assert default_factory(1_000_000, 768) == "IVF4096,SQ8"
    assert default_factory(21_015_324, 768) == "IVF16384,PQ96"
    assert default_factory(21_015_324, 100) == "IVF16384,SQ8"


def test_recall_is_measured_against_exact_search_and_probes_grow_until_it_is_enough() -> None:
    passages = unit_vectors(2_000, clusters=60).astype(np.float16)
    queries = unit_vectors(40, seed=3, clusters=60)
    index = build_compressed(passages, "IVF32,SQ8")
    measured = measure(index, ExactSearch(passages), queries, None)
    assert measured.nprobe is not None

    def recall(nprobe: int) -> float:
        set_probes(index, nprobe)
        found = index.search(queries, RECALL_AT)[1]
        exact = np.argsort(-(queries @ passages.astype(np.float32).T), axis=1)[:, :RECALL_AT]
        return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)) / (40 * RECALL_AT)

    assert measured.recall == pytest.approx(recall(measured.nprobe))
    assert measured.recall >= 0.95 > recall(measured.nprobe // 2)
    given = measure(index, ExactSearch(passages), queries, 2)
    assert (given.nprobe, given.recall) == (2, pytest.approx(recall(2)))
    flat = measure(build_compressed(passages, "SQ8"), ExactSearch(passages), queries, None)
    assert (flat.nprobe, flat.sample) == (None, 40)


def test_every_list_gets_enough_vectors_to_be_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    evenly = approximate._evenly
    monkeypatch.setattr(approximate, "_TRAINED_ON", 300)
    monkeypatch.setattr(approximate, "_evenly", lambda rows, wanted: asked.append(wanted) or evenly(rows, wanted))
    for factory in ("IVF16,SQ8", "IVF4,SQ8", "SQ8"):
        build_compressed(unit_vectors(2_000).astype(np.float16), factory)
    assert asked == [640, 300, 300]


@pytest.mark.parametrize(("factory", "reason"), [("IVF9999,SQ8", "9,999 lists for 5 vectors"), ("Nonsense", "parse")])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_factory_that_cannot_be_is_refused_before_anything_is_encoded(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str, reason: str, parts: int
) -> None:
    def encode(*_: Any) -> None:
        raise AssertionError("encoded in vain")

    monkeypatch.setattr(Encoder, "encode", encode)
    corpus = write_corpus(tmp_path / "c.jsonl")
    settings = {"encoder": str(encoder_folder), "max_length": 40, "factory": factory}
    with pytest.raises(ConfigError, match=f"factory = '{factory}' cannot be built over 5 vectors of 16: .*{reason}"):
        if parts == 1:
            build_index(corpus, tmp_path / "i", retriever="dense", settings=settings)
        else:
            build_part(corpus, tmp_path / "p", 1, 2, retriever="dense", settings=settings)
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]


def test_strings_that_are_no_factory_are_refused() -> None:
    with pytest.raises(ConfigError, match="factory = 'Nonsense' cannot be built"):
        build_compressed(unit_vectors(50).astype(np.float16), "Nonsense")
    with pytest.raises(ConfigError, match="nprobe = 0"):
        DenseConfig(nprobe=0)


def test_a_compressed_index_tells_its_recall_and_finds_passages(tmp_path: Path, encoder_folder: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), f"{WORDS[n]} {WORDS[-n]} town") for n in range(20)))
    settings = {"encoder": str(encoder_folder), "max_length": 40}
    exact, _ = build_index(corpus, tmp_path / "exact", retriever="dense", settings=settings)
    small, _ = build_index(corpus, tmp_path / "ivf", retriever="dense", settings=settings | {"factory": "IVF4,SQ8"})
    assert exact.state["factory"] == "Flat"
    assert "measured" not in exact.state
    assert small.state["measured"]["recall"] >= 0.95
    assert {"vectors.npy", "faiss.index"} & small.files.keys() == {"faiss.index"}
    results = [open_index(tmp_path / name).retriever.search(["town", "river"], 5) for name in ("exact", "ivf")]
    for ours, theirs in zip(*results, strict=True):
        assert len(ours) == len(theirs) == 5
        assert len({h.passage.id for h in ours} & {h.passage.id for h in theirs}) >= 4
        assert [h.score for h in theirs] == sorted((h.score for h in theirs), reverse=True)


def test_vectors_of_other_passages_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / vectors.FILE, np.zeros((4, 3), dtype=np.float16))
    with pytest.raises(RetrievalError, match=r"\(4, 3\) float16 for 5 passages"):
        open_vectors(tmp_path, 5)
    (tmp_path / vectors.FILE).write_bytes(b"\x93NUMPY")
    with pytest.raises(RetrievalError, match="damaged"):
        open_vectors(tmp_path, 4)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQ8"])
def test_an_index_whose_vectors_were_cut_short_or_swapped_is_refused(
    tmp_path: Path, encoder_folder: Path, factory: str
) -> None:
    passages = [Passage(str(n), f"{WORDS[n]} {WORDS[-n]} town") for n in range(20)]
    settings = {"encoder": str(encoder_folder), "max_length": 40, "factory": factory}
    for name, rows in (("ours", passages), ("other", [*passages[:-1], Passage("x", "something longer than that")])):
        corpus = write_corpus(tmp_path / f"{name}.jsonl", rows)
        build_index(corpus, tmp_path / name, retriever="dense", settings=settings)
    file = tmp_path / "ours" / ("vectors.npy" if factory == "Flat" else "faiss.index")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(RetrievalError, match=rf"{file.name} has {len(whole) - 7} bytes, {len(whole)} were written"):
        open_index(tmp_path / "ours")
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the right size: only reading all of it tells
    with pytest.raises(RetrievalError, match=r"was changed after it was written"):
        check_integrity(open_index(tmp_path / "ours"))
    file.write_bytes(whole)
    (tmp_path / "ours" / "passages.jsonl").write_bytes((tmp_path / "other" / "passages.jsonl").read_bytes())
    with pytest.raises(RetrievalError, match=r"passages\.jsonl has .* bytes, .* were written"):
        open_index(tmp_path / "ours")
    with pytest.raises(ConfigError, match="of another corpus"):
        build_index(tmp_path / "ours.jsonl", tmp_path / "other", retriever="dense", settings=settings)
