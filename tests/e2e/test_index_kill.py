"""`kill -9` at ten random moments of a dense build, the same command again: the index of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import SOURCES
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage
from dgpo_cli.retrieval.open import open_index

pytestmark = pytest.mark.slow
KILLS, SHARD, SHARDS = 10, 8, 130
# The command itself, over small shards that take a moment each, so that every moment can be hit.
CODE = f"""
import sys, time
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.cli import main
vectors.SHARD = {SHARD}
encode = vectors.Encoder.encode
def slowly(self, texts, prefix):
    time.sleep(0.03)
    return encode(self, texts, prefix)
vectors.Encoder.encode = slowly
main(sys.argv[1:])
"""


@pytest.mark.parametrize("seed", [0])
def test_ten_kills(tmp_path: Path, seed: int) -> None:
    make_encoder(tmp_path / "encoder")
    count = len(WORDS)
    passages = (
        Passage(str(n), f"{WORDS[n % count]} {WORDS[n // count % count]} {WORDS[n * n % count]}")
        for n in range(SHARD * SHARDS - 3)
    )
    write_corpus(tmp_path / "c.jsonl", passages)
    draw = random.Random(seed)

    def start(out: str) -> subprocess.Popen[str]:
        options = ["--retriever", "dense", "--encoder", "encoder", "-o", "max_length=40", "-o", "factory=IVF8,SQ8"]
        command = [sys.executable, "-c", CODE, "index", "c.jsonl", "--out", out, *options]
        environment = os.environ | {"PYTHONPATH": str(SOURCES)}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    def encoded() -> int:
        return len(list((tmp_path / ".killed.writing" / "shards").glob("*.npy")))

    survived = []
    for number in range(KILLS):
        process, before, deadline = start("killed"), encoded(), time.monotonic() + 120
        # The first one dies at any moment of its start, the others after some more shards and a part of one.
        wanted = before + draw.randrange(SHARDS // KILLS) if number else 0
        while encoded() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05 if number else 5))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        assert encoded() >= before, "nothing that was encoded is lost"
        assert not (tmp_path / "killed").exists()
        survived.append(encoded())
    assert 0 < survived[-1] < SHARDS
    for out in ("killed", "whole"):
        process = start(out)
        assert process.wait() == 0, process.communicate()[1]
    killed, whole = (
        json.loads((tmp_path / out / "manifest.json").read_text()) | {"seconds": 0, "sha256": ""}
        for out in ("killed", "whole")
    )
    assert killed == whole, "all files have the same hashes"
    queries = [" ".join(draw.sample(WORDS, 3)) for _ in range(50)]
    answers = [open_index(tmp_path / out).retriever.search(queries, 5) for out in ("killed", "whole")]
    assert answers[0] == answers[1]
    assert not (tmp_path / ".killed.writing").exists()
