"""Milvus from the command line: index, search, check, the agent's loop, and `kill -9` in the middle of a load."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from milvus_lite.server_manager import server_manager_instance
from tests.milvus import QUERIES, ids, milvus_server, passages, scores
from tests.retrieval_corpora import write_corpus
from tests.tiny import bpe_tokenizer
from tests.tiny_encoder import make_encoder

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.viewing.chat import Chat


@pytest.fixture(autouse=True)
def _files_are_let_go() -> Iterator[None]:
    yield
    server_manager_instance.release_all()


def test_index_search_check_and_the_agents_loop(dgpo: Callable[..., Any], folder: Path) -> None:
    write_corpus(folder / "towns.jsonl")
    built = dgpo("index", "towns.jsonl", "--retriever", "milvus", "--uri", "m.db", "-o", "bm25.k1=0.9", "--json")
    result = json.loads(built.out)
    assert (built.status, result["passages"], result["reused"]) == (0, 5, False)
    assert result["settings"]["uri"] == str(folder / "m.db")
    assert (
        "used as it is" in dgpo("index", "towns.jsonl", "--retriever", "milvus", "--uri", "m.db", "-obm25.k1=0.9").out
    )
    assert dgpo("index", "towns.jsonl", "--out", "ours", "-o", "k1=0.9").status == 0
    found, expected = (
        json.loads(dgpo("search", "the mayor Mira Holt", "--index", name, "--json").out)["hits"]
        for name in ("indexes/towns", "ours")
    )
    assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    checked = json.loads(dgpo("index", "check", "--index", "indexes/towns", "--json").out)
    assert (checked["passages"], checked["own_words"]["2"]) == (5, 1.0)

    codec = Codec(bpe_tokenizer(), DEFAULT)
    turns = ["<think> look</think><search> mayor of Vesapo</search>", "<answer> Mira Holt</answer>"]
    engine = ScriptedEngine(codec, turns_by_question({"mayor": turns}))
    retriever = open_index(folder / "indexes" / "towns").retriever
    talk = Chat(lambda: Agent(engine, codec, retriever, RolloutSettings(temperature=0, wave=1)))
    episode = talk.ask("Who is mayor of Vesapo?")
    assert episode.searches[0].hits[0].passage.id == "a"
    assert "The mayor of Vesapo is Mira Holt." in codec.decode(episode.token_ids)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--retriever", "milvus"], "the milvus retriever needs an address"),
        (["--uri", "m.db"], "--uri has no effect on bm25"),
        (["--retriever", "milvus", "--uri", "host:19530"], "uri = 'host:19530' has no scheme"),
        (["--retriever", "milvus", "--uri", "http://127.0.0.1:9"], "Milvus at http://127.0.0.1:9 cannot be reached"),
        (["--retriever", "milvus", "--uri", "m.db", "--encoder", "e5"], "no effect on mode=bm25"),
        (["--retriever", "milvus", "--uri", "m.db", "-o", "mode=both"], "mode = 'both' is not 'bm25' or"),
        (["--retriever", "milvus", "--uri", "m.db", "-o", "scoring=milvus"], "in each of its segments"),
        (["--retriever", "milvus", "--uri", "file.db"], "file.db is a file"),
        (["--retriever", "milvus", "--uri", "i/m.db", "--out", "i"], "i/m.db is in the index folder i"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    dgpo: Callable[..., Any], folder: Path, argv: list[str], message: str
) -> None:
    write_corpus(folder / "c.jsonl")
    (folder / "file.db").write_bytes(b"x")
    ended = dgpo("index", "c.jsonl", *argv)
    assert (ended.status, len(ended.errors), "Traceback" in ended.err) == (1, 1, False)
    assert message in ended.errors[0]
    assert not (folder / "indexes").exists()
    assert not (folder / "i").exists()


def test_a_token_that_cannot_be_sent(dgpo: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPO_MILVUS_TOKEN", "two words")
    ended = dgpo("index", "c.jsonl")
    assert "DGPO_MILVUS_TOKEN holds no token" in ended.errors[0]
    assert "two words" not in ended.err


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """With so little memory for rows not yet on disk that a small load writes segments, and merges them, as it goes."""
    command = [sys.executable, "-m", "dgpo_cli", "index", *arguments]
    little = os.environ | {"MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(1 << 18)}
    return subprocess.Popen(
        command, cwd=folder, env=little, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder: Path, *arguments: str) -> None:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def written(database: Path) -> int:
    """Bytes of the log of what is not yet in a segment, which grows by each batch."""
    size = 0
    for path in database.glob("collections/*/wal/*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # put away meanwhile
            continue
    return size


def kill_in_load(process: subprocess.Popen[str], database: Path, pause_s: float) -> None:
    """Once a batch went in, and a moment later: in the middle of another."""
    before, deadline = written(database), time.monotonic() + 120
    while (now := written(database)) <= before and process.poll() is None and time.monotonic() < deadline:
        before = now
        time.sleep(0.002)
    time.sleep(pause_s)
    assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[0]}"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def place(folder: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """The address of a Milvus, and the folder of its files."""
    if kind == "file":
        yield str(folder / "m.db"), folder / "m.db"
    else:
        with milvus_server(folder / "served") as address:
            yield address, folder / "served"


def answers_after_kills(tmp_path: Path, kind: str, count: int, kills: int, *options: str) -> None:
    """Kill one load `kills` times, each time further on, and compare with a load that nobody disturbed."""
    corpus = str(write_corpus(tmp_path / "corpus.jsonl", passages(count)))
    draw = random.Random(kind)
    found = []
    for name, times in (("whole", 0), ("killed", kills)):
        folder = tmp_path / name
        folder.mkdir()
        with place(folder, kind) as (uri, files):
            arguments = (corpus, "--out", "index", "--retriever", "milvus", "--uri", uri, *options)
            for _ in range(times):
                kill_in_load(start(folder, *arguments), files, draw.uniform(0, 0.1))
            finish(folder, *arguments)
            retriever = open_index(folder / "index").retriever
            found.append(retriever.search([*QUERIES, *(p.text for p in passages(40, seed=1))], 20))
            retriever.verify()  # type: ignore[attr-defined]
        server_manager_instance.release_all()
    whole, killed = found
    assert scores(killed) == pytest.approx(scores(whole), abs=2e-5)
    assert ids(killed) == ids(whole)


@pytest.mark.slow
def test_a_load_that_was_killed_twice(tmp_path: Path) -> None:
    answers_after_kills(tmp_path, "file", 6_000, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "server"])
def test_ten_kills_of_a_bm25_load(tmp_path: Path, kind: str) -> None:
    answers_after_kills(tmp_path, kind, 30_000, 10)


@pytest.mark.slow
def test_ten_kills_of_a_hybrid_load(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder")
    options = ("-o", "mode=hybrid", "--encoder", str(encoder), "-o", "dense.max_length=40")
    answers_after_kills(tmp_path, "file", 30_000, 10, *options)
