"""What every retriever keeps: those over an index folder, a server's, and one of another package."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.base import Retriever
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import check_index, open_index
from dgpo_cli.retrieval.registry import RETRIEVERS, SERVERS, is_server

OUTSIDE = '''
from dataclasses import dataclass

from dgpo_cli.core.types import Hit, Passage
from dgpo_cli.retrieval.registry import settings_of


@dataclass(frozen=True)
class Config:
    most: int = 10
    town: str = "Vesapo"


class Towns:
    """The one passage that it knows, for every query that is not blank."""

    def __init__(self, config):
        self.config = config

    @classmethod
    def open(cls, location):
        return cls(settings_of(location, Config))

    def check(self):
        self.search(["?"], 1)

    def search(self, queries, k):
        text = "Vesapo is a town on the river Lun. The mayor of Vesapo is Mira Holt."
        passage = Passage("a", f'"{self.config.town}"\\n{text}')
        return [[Hit(passage, 1.0, 1)][: min(k, self.config.most)] if query.strip() else [] for query in queries]
'''
QUERIES = ("Who is the mayor of Vesapo?", " ", "a novel about a harbour town", "river")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "things_of_others.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "things_of_others:Towns"


@pytest.fixture
def server(corpus: Path, tmp_path: Path) -> Iterator[str]:
    """Search-R1's protocol over an index of this machine."""
    build_index(corpus, tmp_path / "served", retriever="bm25")
    retriever = open_index(tmp_path / "served").retriever

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = retriever.search(asked["queries"], asked["topk"])
            rows = [
                [{"document": {"id": h.passage.id, "contents": h.passage.contents}, "score": h.score} for h in hits]
                for hits in found
            ]
            content = json.dumps({"result": rows}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()


@pytest.fixture(params=[*RETRIEVERS, "server", "outside"])
def location(request: pytest.FixtureRequest, corpus: Path, tmp_path: Path) -> str:
    name = str(request.param)
    if name in ("server", "outside"):
        return str(request.getfixturevalue(name))
    settings: dict[str, object] = {}
    if name == "milvus":
        pytest.importorskip("milvus_lite")
        settings = {"uri": str(tmp_path / "rows.db")}
    elif name in ("dense", "hybrid"):
        dense: dict[str, object] = {"encoder": str(make_encoder(tmp_path / "encoder")), "max_length": 32}
        settings = dense if name == "dense" else {"dense": dense}
    build_index(corpus, tmp_path / "index", retriever=name, settings=settings)
    return str(tmp_path / "index")


@pytest.fixture
def retriever(location: str) -> Retriever:
    check_index(location)
    return open_index(location).retriever


@pytest.mark.parametrize("k", [1, 3, 50])
def test_hits_are_passages_of_the_corpus_in_the_order_of_their_scores(retriever: Retriever, k: int) -> None:
    known = {passage.id: passage for passage in TOWNS}
    found = retriever.search(QUERIES, k)
    assert len(found) == len(QUERIES)
    assert found[0], "the first question has an answer"
    for hits in found:
        assert len(hits) <= min(k, len(TOWNS))
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(hit.passage == known[hit.passage.id] for hit in hits)
        assert len({hit.passage.id for hit in hits}) == len(hits)


def test_a_blank_query_finds_nothing_and_no_query_is_no_answer(retriever: Retriever) -> None:
    assert retriever.search([" ", "\n"], 3) == [[], []]
    assert retriever.search([], 3) == []


def test_queries_do_not_depend_on_each_other(retriever: Retriever) -> None:
    together = [[hit.passage.id for hit in hits] for hits in retriever.search(QUERIES, 3)]
    alone = [[hit.passage.id for hit in retriever.search([query], 3)[0]] for query in QUERIES]
    assert together == alone


def test_settings_of_a_retriever_outside_are_checked(outside: str) -> None:
    assert is_server(outside) and set(SERVERS) == {"http", "https"}
    opened = open_index(f"{outside}?town=Tarn")
    assert opened.retriever.search(["?"], 3)[0][0].passage.contents.startswith('"Tarn"')
    assert opened.digest == f"{outside}?town=Tarn"
    assert open_index(f"{outside}?most=0").retriever.search(["?"], 3) == [[]]
    with pytest.raises(ConfigError, match="no option 'twon'"):
        open_index(f"{outside}?twon=Tarn")
    with pytest.raises(ConfigError, match="No module named 'things_of_nobody'"):
        check_index("things_of_nobody:Towns")


def test_a_folder_is_never_taken_for_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki:small").mkdir()
    assert not is_server("wiki:small")
