"""A dense index made by several processes: `--shard` and `dgpo index merge`, and `accelerate launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SOURCES
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage

ROWS = 2_100  # two blocks, so two parts that hold something
OPTIONS = ("--retriever", "dense", "--encoder", "encoder", "-o", "max_length=40")


@pytest.fixture
def corpus(folder: Path) -> Path:
    make_encoder(folder / "encoder")
    count = len(WORDS)
    passages = (Passage(str(n), f"{WORDS[n % count]} {WORDS[n // count % count]} {n % 7}") for n in range(ROWS))
    return write_corpus(folder / "c.jsonl", passages)


def same_but_time(one: Path, other: Path) -> None:
    ours, theirs = (
        json.loads((folder / "manifest.json").read_text()) | {"seconds": 0, "sha256": ""} for folder in (one, other)
    )
    assert ours == theirs
    assert (one / "vectors.npy").read_bytes() == (other / "vectors.npy").read_bytes()


def test_parts_from_the_command_line(dgpo: Callable[..., Any], corpus: Path, folder: Path) -> None:
    assert dgpo("index", "c.jsonl", *OPTIONS).status == 0
    first = json.loads(dgpo("index", "c.jsonl", *OPTIONS, "--shard", "1/2", "--json").out)
    assert (first["part"], first["rows"], first["passages"]) == ("indexes/c.part-1-of-2", 2_048, ROWS)
    assert "part 2 of 2 holds 52 of 2,100 passages" in dgpo("index", "c.jsonl", *OPTIONS, "--shard", "2/2").out
    assert "used as it is" in dgpo("index", "c.jsonl", *OPTIONS, "--shard", "2/2").out
    early = dgpo("index", "merge", "indexes/c.part-2-of-2", "--out", "merged")
    assert early.errors == ["error: part 1 of 2 is missing"]
    corpus.unlink()
    merged = dgpo("index", "merge", "indexes/c.part-2-of-2", "indexes/c.part-1-of-2", "--out", "merged", "--json")
    assert json.loads(merged.out)["passages"] == ROWS
    same_but_time(folder / "merged", folder / "indexes" / "c")
    assert dgpo("search", "river", "--index", "merged").status == 0
    assert dgpo("index", "check", "--index", "merged").status == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shard", "3/2"], "--shard '3/2' is no part"),
        (["--shard", "3/3"], "has 2 blocks of 2,048 passages, so part 3 would be empty"),
        (["--shard", "1/2", "--retriever", "bm25"], "--encoder has no effect on bm25"),
        (["--device", "gpu7"], "device 'gpu7' is none"),
    ],
)
def test_what_cannot_be_a_part(
    dgpo: Callable[..., Any], corpus: Path, folder: Path, argv: list[str], message: str
) -> None:
    ended = dgpo("index", "c.jsonl", *OPTIONS, *argv)
    assert ended.status != 0
    assert len(ended.errors) == 1
    assert message in ended.errors[0]
    assert not (folder / "indexes").exists() or not any((folder / "indexes").iterdir())


@pytest.mark.slow
def test_two_processes_of_accelerate_make_the_index_of_one(corpus: Path, folder: Path) -> None:
    arguments = ["index", "c.jsonl", *OPTIONS, "--json"]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "dgpo_cli"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    for out, start in (("plain", ["-m", "dgpo_cli"]), ("together", launch)):
        command = [sys.executable, *start, *arguments, "--out", out]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["passages"] == ROWS, "one process speaks for all"
    same_but_time(folder / "together", folder / "plain")
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) in ([], [".dgpo"])
