"""The Milvus retriever against milvus-lite: the answers of the other retrievers, resumed loads, and what it refuses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from milvus_lite.server_manager import server_manager_instance
from tests.milvus import QUERIES, ids, milvus_server, passages, scores
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.core import extras
from dgpo_cli.errors import ConfigError, InputError, RetrievalError
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.check import check_integrity
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.open import check_index, open_index
from dgpo_cli.retrieval.remote.milvus import load as milvus_load
from dgpo_cli.retrieval.remote.milvus.collection import MilvusCollection
from dgpo_cli.retrieval.remote.milvus.connection import MilvusAccess, connect, use_access
from dgpo_cli.retrieval.remote.milvus.retriever import MilvusConfig

BM25 = {"k1": "0.9", "stemmer": "english"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"encoder": str(make_encoder(tmp_path_factory.mktemp("encoder"))), "max_length": "40"}


@pytest.fixture(autouse=True)
def _files_are_let_go() -> Iterator[None]:
    yield
    server_manager_instance.release_all()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Loads in batches of 64, so that a small corpus has several."""
    monkeypatch.setattr(milvus_load, "BATCH", 64)
    corpus = write_corpus(tmp_path / "corpus.jsonl", passages(300))

    def run(name: str = "milvus", overwrite: bool = False, **settings: Any) -> Path:
        build_index(
            corpus, tmp_path / name, retriever="milvus", settings={"uri": str(tmp_path / "m.db")} | settings,
            overwrite=overwrite,
        )  # fmt: skip
        return tmp_path / name

    return run


def collection_of(index: Path) -> MilvusCollection:
    manifest = read_manifest(index)
    collection = MilvusCollection(manifest.settings["uri"], manifest.state["collection"])
    collection.load(1)
    return collection


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire"])
def test_bm25_is_the_bm25_retrievers(build: Callable[..., Path], tmp_path: Path, variant: str) -> None:
    index = build(bm25=BM25 | {"variant": variant})
    build_index(tmp_path / "corpus.jsonl", tmp_path / "ours", settings=BM25 | {"variant": variant})
    found, expected = (open_index(path).retriever.search(QUERIES, 20) for path in (index, tmp_path / "ours"))
    assert scores(found) == pytest.approx(scores(expected), abs=2e-5)
    assert ids(found) == ids(expected)
    assert [bool(hits) for hits in found] == [True, True, False, False, True, True, True]


def test_dense_and_hybrid_are_the_other_retrievers(
    build: Callable[..., Path], tmp_path: Path, dense: dict[str, Any]
) -> None:
    for mode, settings in (("dense", dense), ("hybrid", {"dense": dense, "bm25": BM25})):
        build_index(tmp_path / "corpus.jsonl", tmp_path / f"our-{mode}", retriever=mode, settings=settings)
    parts = {"dense": {"dense": dense}, "hybrid": {"dense": dense, "bm25": BM25}}
    for mode, settings in parts.items():
        found, expected = (
            open_index(path).retriever.search(QUERIES, 10)
            for path in (build(f"milvus-{mode}", mode=mode, **settings), tmp_path / f"our-{mode}")
        )
        assert scores(found) == pytest.approx(scores(expected), abs=2e-5)
        assert ids(found) == ids(expected)
    manifest = read_manifest(tmp_path / "milvus-dense")
    assert manifest.state["dense"]["factory"] == "FLAT"
    assert "measured" not in manifest.state["dense"]
    assert not (tmp_path / "milvus-dense" / "vectors.npy").exists()
    assert not (tmp_path / "milvus-hybrid" / "counts").exists()


def test_an_approximate_index_is_measured(build: Callable[..., Path], dense: dict[str, Any]) -> None:
    index = build(mode="dense", dense=dense, dense_index="HNSW", build={"M": "8"}, search={"ef": "40"})
    state = read_manifest(index).state["dense"]
    assert state["factory"] == "HNSW"
    assert state["measured"]["sample"] == 200
    assert 0.5 < state["measured"]["recall"] <= 1
    assert len(open_index(index).retriever.search(["river"], 60)[0]) == 60, "ef grows with k"


def test_of_many_equal_passages_the_first_come_first(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", (type(TOWNS[0])(str(n), '"t"\nriver') for n in range(700)))
    build_index(corpus, tmp_path / "i", retriever="milvus", settings={"uri": str(tmp_path / "m.db")})
    assert ids(open_index(tmp_path / "i").retriever.search(["river"] * 2, 3)) == [["0", "1", "2"]] * 2


class Killed(Exception):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, batch: int, written: list[tuple[int, bool]]) -> None:
    """From now on the load ends before batch number `batch` of it; `written` gets the first row of each."""
    write = MilvusCollection.write

    def stops(self: MilvusCollection, rows: list[dict[str, Any]], *, replace: bool) -> None:
        if len(written) == batch:
            raise Killed
        written.append((rows[0]["row"], replace))
        write(self, rows, replace=replace)

    monkeypatch.setattr(MilvusCollection, "write", stops)


def test_a_load_goes_on_where_it_ended(build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_index(build("whole", collection="whole")).retriever.search(QUERIES, 20)
    for batch, starts in ((2, [0, 64]), (1, [128]), (9, [192, 256])):
        with monkeypatch.context() as patch:
            written: list[tuple[int, bool]] = []
            killed_at(patch, batch, written)
            if batch < 9:
                with pytest.raises(Killed):
                    build()
            else:
                build()
            assert written == [(row, False) for row in starts]
    assert open_index(build()).retriever.search(QUERIES, 20) == whole


def test_half_a_batch_is_written_again(build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cluster leaves it where the rows of a batch went to two shards."""
    whole = open_index(build("whole", collection="whole")).retriever.search(QUERIES, 20)
    write = MilvusCollection.write

    def half(self: MilvusCollection, rows: list[dict[str, Any]], *, replace: bool) -> None:
        write(self, rows if rows[0]["row"] < 128 else rows[::2], replace=replace)
        if rows[0]["row"] >= 128:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MilvusCollection, "write", half)
        with pytest.raises(Killed):
            build()
    with monkeypatch.context() as patch:
        written: list[tuple[int, bool]] = []
        killed_at(patch, 99, written)
        build()
    assert written == [(128, True), (192, False), (256, False)]
    assert open_index(build()).retriever.search(QUERIES, 20) == whole


def test_another_folder_over_the_same_corpus_uses_the_collection(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_index(build("first")).retriever.search(QUERIES, 5)
    written: list[tuple[int, bool]] = []
    killed_at(monkeypatch, 0, written)
    assert open_index(build("second")).retriever.search(QUERIES, 5) == first
    assert read_manifest(build("second")).digest == read_manifest(build("first")).digest


@pytest.mark.parametrize("change", ["other passage", "fewer", "more", "dropped"])
def test_a_collection_of_something_else_is_refused_and_then_mended(build: Callable[..., Path], change: str) -> None:
    index = build()
    before = open_index(index).retriever.search(QUERIES, 5)
    collection = collection_of(index)
    other = {"row": 0, "passage_hash": 7, "words": {0: 1.0}}
    if change == "other passage":
        collection.write([other], replace=True)
    elif change == "more":
        collection.write([other | {"row": 300}], replace=False)
    elif change == "fewer":
        collection._client.delete(collection.name, ids=[200])
    else:
        collection.drop()
    message = {
        "other passage": "row 0 of collection dgpo_.* is missing or not passage 'p0'",
        "fewer": "has 299 rows, the index .* holds 300 passages",
        "more": "has 301 rows",
        "dropped": "has no collection dgpo_",
    }[change]
    with pytest.raises(RetrievalError, match=message) as refused:
        open_index(index)
    assert "--overwrite" in str(refused.value.hint)
    build(overwrite=True)
    assert open_index(index).retriever.search(QUERIES, 5) == before


def test_check_reads_every_row(build: Callable[..., Path]) -> None:
    index = build()
    opened = open_index(index)
    assert check_integrity(opened) == 300
    collection_of(index).write([{"row": 130, "passage_hash": 7, "words": {0: 1.0}}], replace=True)
    reopened = open_index(index)  # none of the sample
    with pytest.raises(RetrievalError, match="row 130 of collection"):
        check_integrity(reopened)


def test_another_encoder_is_refused(build: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "encoder")
    index = build(mode="dense", dense={"encoder": str(folder), "max_length": "40"})
    make_encoder(folder, seed=1)
    with pytest.raises(RetrievalError, match=r"was built with other .* weights"):
        open_index(index)


def test_a_server_gives_the_same_answers_as_a_file(
    build: Callable[..., Path], tmp_path: Path, dense: dict[str, Any]
) -> None:
    settings = {"mode": "hybrid", "dense": dense, "shards": "2", "replicas": "1"}
    embedded = open_index(build("embedded", **settings)).retriever.search(QUERIES, 10)
    with milvus_server(tmp_path / "server") as address:
        index = build("served", **settings, uri=address)
        check_index(index)
        assert open_index(index).retriever.search(QUERIES, 10) == embedded
        assert read_manifest(index).settings["uri"] == address
    with pytest.raises(RetrievalError, match=f"Milvus at {address} cannot be reached"):
        check_index(index)


def test_milvus_own_bm25_on_a_server(build: Callable[..., Path], tmp_path: Path) -> None:
    """In one segment, and with k1 + 1 in its formula, which ours leaves out."""
    ours = open_index(build("ours", bm25={"stopwords": "english"})).retriever.search(QUERIES, 10)
    with milvus_server(tmp_path / "server") as address:
        index = build("theirs", scoring="milvus", uri=address)
        found = open_index(index).retriever.search(QUERIES, 10)
        assert not (index / "words.json").exists()
    assert scores(found) == pytest.approx([2.5 * score for score in scores(ours)], rel=1e-5)
    assert ids(found) == ids(ours)
    long = write_corpus(tmp_path / "long.jsonl", [*TOWNS, type(TOWNS[0])("long", '"t"\n' + "é" * 40_000)])
    with (
        milvus_server(tmp_path / "server") as address,
        pytest.raises(InputError, match="passage 'long' has more than 65535 bytes"),
    ):
        build_index(long, tmp_path / "long", retriever="milvus", settings={"uri": address, "scoring": "milvus"})


def test_the_token_is_sent_and_kept_nowhere(build: Callable[..., Path], tmp_path: Path) -> None:
    with milvus_server(tmp_path / "server", base64.b64encode(b"root:Secret1").decode()) as address:
        try:
            with pytest.raises(RetrievalError, match="cannot be reached") as refused:
                build("refused", uri=address)
            assert "DGPO_MILVUS_TOKEN" in str(refused.value.hint)
            use_access(MilvusAccess(token="root:Secret1"))
            index = build(uri=address)
            assert open_index(index).retriever.search(["river"], 3)[0]
        finally:
            use_access(MilvusAccess())
    assert "Secret1" not in repr(MilvusAccess(token="root:Secret1"))
    assert not any(b"Secret1" in path.read_bytes() for path in index.rglob("*") if path.is_file())


def test_a_server_that_goes_away_is_an_error_and_no_empty_answer(build: Callable[..., Path], tmp_path: Path) -> None:
    use_access(MilvusAccess(timeout_s=5))
    try:
        with milvus_server(tmp_path / "server") as address:
            retriever = open_index(build(uri=address)).retriever
            assert retriever.search(["river"], 3)[0]
        with pytest.raises(RetrievalError, match=f"Milvus at {address} cannot search the collection"):
            retriever.search(["river"], 3)
    finally:
        use_access(MilvusAccess())


@pytest.mark.slow
def test_a_connection_outlives_a_pause(build: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    retriever = open_index(build()).retriever
    before = retriever.search(["river"], 3)
    time.sleep(100)  # pings every 10 seconds are answered by a hang-up after 80
    assert retriever.search(["river"], 3) == before
    assert "GOAWAY" not in capfd.readouterr().err


HOLD = """
import sys, time
from pymilvus import MilvusClient
client = MilvusClient(sys.argv[1])
print("held", flush=True)
time.sleep(99)
"""


def test_a_file_that_another_process_has_open(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "m.db"], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RetrievalError, match="another process holds the lock") as refused:
                connect(str(tmp_path / "m.db"))
            assert "one process at a time" in str(refused.value.hint)
        finally:
            holder.kill()


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(b"SQLite")
    (tmp_path / "notes.db").mkdir()
    (tmp_path / "notes.db" / "letter.txt").touch()
    for name, message in (("old", "is a file"), ("notes", "without a Milvus database"), ("none", "is not there")):
        with pytest.raises(RetrievalError, match=message):
            connect(str(tmp_path / f"{name}.db"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.db", "old.db"]


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(RetrievalError, match=f"Milvus needs {missing}, which is not installed") as refused:
        connect(str(tmp_path / "m.db"), create=True)
    assert refused.value.hint == extras.installing("milvus")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("m.sqlite", "neither a file FILE.db nor"),
        ("localhost:19530", "has no scheme"),
        ("ftp://host", "no address of a Milvus server"),
        ("http://host:99999", "no address of a Milvus server"),
        ("http://root:Secret1@host:19530", "holds a name, a password"),
        ("http://host:19530?token=Secret1", "holds a name, a password"),
    ],
)
def test_addresses_that_are_refused(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        MilvusConfig(uri=uri)
    assert "Secret1" not in f"{refused.value.message} {refused.value.hint}"


def test_a_path_is_made_absolute(folder: Path) -> None:
    assert MilvusConfig(uri="a/m.db").uri == str(folder / "a" / "m.db")
    assert MilvusConfig(uri="https://host:19530/wiki/").uri == "https://host:19530/wiki"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense_index": "HNSW"}, "no effect on mode=bm25"),
        ({"mode": "dense", "scoring": "milvus"}, "no effect on mode=dense"),
        ({"depth": 0}, "out of range"),
        ({"shards": 0}, "out of range"),
        ({"collection": "my wiki"}, "is no name"),
        ({"scoring": "milvus", "uri": "/m.db"}, "counts words in each of its segments"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MilvusConfig(**settings)


def test_a_corpus_without_words(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", [type(TOWNS[0])("a", '"the"\n? !')])
    with pytest.raises(InputError, match="no passage holds a word"):
        build_index(corpus, tmp_path / "i", retriever="milvus", settings={"uri": str(tmp_path / "m.db")})


def test_the_manifest_names_what_it_takes_to_make_it_again(build: Callable[..., Path], dense: dict[str, Any]) -> None:
    manifest = read_manifest(build(mode="hybrid", dense=dense, build={"M": "8"}, dense_index="HNSW"))
    command = manifest.rebuild_command(Path("milvus"))
    assert f"-o uri={manifest.settings['uri']} -o mode=hybrid" in command
    assert "-o build.M=8" in command
    assert json.loads(json.dumps(manifest.state))["collection"].startswith("dgpo_")
