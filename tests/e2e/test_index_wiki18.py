"""`dgpo index wiki-18` against a stand-in for the hub: a corpus and an index of the published form, but small."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faiss
import pytest
from tests.conftest import SOURCES
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.retrieval.dense.encoder import Encoder, EncoderConfig
from dgpo_cli.retrieval.open import open_index

COMMIT = "0" * 40
MAX_LENGTH = ("-o", "max_length=40")  # of the small encoder


class Hub:
    """Serves files by their address as the hub does. A download of `stalls_in` stops in its middle and hangs."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.stalls_in, self.ranges = files, "", []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                content = hub.files.get(self.path.replace(f"/resolve/{COMMIT}/", "/resolve/main/"))
                if content is None:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    if "/resolve/" in self.path:
                        self.send_header("X-Error-Code", "EntryNotFound")
                    self.end_headers()
                    return
                wanted = self.headers.get("Range")
                start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
                if body:
                    hub.ranges.append((self.path.rpartition("/")[2], start))
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content) - start))
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body and hub.stalls_in and self.path.endswith(hub.stalls_in):
                    self.wfile.write(content[start : len(content) // 2])
                    self.wfile.flush()
                    time.sleep(60)
                elif body:
                    self.wfile.write(content[start:])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    encoder = make_encoder(folder / "made" / "e5-base-v2")
    config = EncoderConfig(encoder=str(encoder), max_length=40)
    vectors = Encoder(config).encode([p.contents for p in TOWNS], "passage: ")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "made" / "flat"))
    flat = (folder / "made" / "flat").read_bytes()
    corpus = write_corpus(folder / "made" / "c.jsonl").read_bytes()
    files = {
        "/datasets/PeterJinGo/wiki-18-corpus/resolve/main/wiki-18.jsonl.gz": gzip.compress(corpus),
        "/datasets/PeterJinGo/wiki-18-e5-index/resolve/main/part_aa": flat[:200],
        "/datasets/PeterJinGo/wiki-18-e5-index/resolve/main/part_ab": flat[200:]
        + bytes(1 << 16),  # so that it has a middle
    }
    files |= {f"/intfloat/e5-base-v2/resolve/main/{file.name}": file.read_bytes() for file in encoder.iterdir()}
    hub = Hub(files)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def start(hub: Hub, folder: Path, *argv: str, offline: bool = False) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(SOURCES),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    # The hub library writes what it fetches in pieces of this size, and the files here are small.
    small = "import sys; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
    command = [sys.executable, "-c", f"{small}from dgpo_cli.cli import main; main(sys.argv[1:])", "index", "wiki-18"]
    return subprocess.Popen(
        [*command, *argv],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(hub: Hub, folder: Path, *argv: str, offline: bool = False) -> tuple[int, str, str]:
    process = start(hub, folder, *argv, offline=offline)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_it_is_fetched_killed_gone_on_with_and_made_into_an_index(hub: Hub, folder: Path) -> None:
    status, _, err = run(hub, folder, *MAX_LENGTH)
    assert status == 1
    assert "would be fetched" in err
    assert "give --yes to fetch them" in err
    assert "GB are needed at most" in err
    assert hub.ranges == [], "nothing was fetched before the answer"

    hub.stalls_in = "part_ab"
    process = start(hub, folder, "--yes", *MAX_LENGTH)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not sum(p.stat().st_size > 8_192 for p in folder.glob("indexes/.*.flat")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (begun,) = folder.glob("indexes/.wiki-18.*.flat")
    size, before = begun.stat().st_size, len(hub.ranges)
    hub.stalls_in = ""

    status, out, err = run(hub, folder, "--yes", *MAX_LENGTH, "--json")
    assert status == 0, err
    again = dict(hub.ranges[before:])
    assert again["part_ab"] == size - 200 > 8_000, "only what was missing is fetched"
    assert not {"part_aa", "wiki-18.jsonl.gz"} & again.keys()
    result = json.loads(out)
    assert (result["index"], result["passages"], result["state"]["factory"]) == ("indexes/wiki-18", len(TOWNS), "Flat")
    assert result["state"]["adopted"]["own_row"] == 1.0
    assert result["state"]["conventions"] == {
        "query_prefix": "query: ",
        "passage_prefix": "passage: ",
        "pooling": "mean",
    }
    assert sorted(p.name for p in (folder / "indexes").iterdir()) == ["wiki-18"], "the joined file is gone"

    status, out, err = run(hub, folder, *MAX_LENGTH, offline=True)
    assert status == 0, err
    assert "used as it is" in out
    manifest: Any = json.loads((folder / "indexes" / "wiki-18" / "manifest.json").read_text())
    assert (manifest["corpus"], manifest["vectors_from"]) == ("wiki-18", "")


def test_the_corpus_alone_and_what_is_refused(hub: Hub, folder: Path) -> None:
    status, _, err = run(hub, folder, "--yes", offline=True)
    assert status == 1
    assert "wiki-18.jsonl.gz is not cached, and HF_HUB_OFFLINE is set" in err
    assert run(hub, folder, "-o", "encoder=other", "--yes")[2].startswith(
        "error: the published vectors are by intfloat/e5"
    )
    assert hub.ranges == []
    status, out, err = run(hub, folder, "--retriever", "bm25", "--yes", "--json")
    assert status == 0, err
    assert [name for name, _ in hub.ranges] == ["wiki-18.jsonl.gz"]
    index = open_index(folder / json.loads(out)["index"])
    assert index.retriever.search(["weavers"], 1)[0][0].passage.id == "e"
