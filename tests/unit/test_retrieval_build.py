"""Building, reusing, replacing and opening index folders; what is refused and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.core import checksums
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import BusyError, ConfigError, InputError, RetrievalError
from dgpo_cli.retrieval.index import manifest as manifests
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.check import check_integrity
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.index.store import PASSAGES
from dgpo_cli.retrieval.open import open_index


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "towns.jsonl")


@pytest.fixture
def index(tmp_path: Path, corpus: Path) -> Path:
    build_index(corpus, tmp_path / "index")
    return tmp_path / "index"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("retriever", ["bm25", "rank-bm25"])
def test_build_and_open(tmp_path: Path, corpus: Path, retriever: str) -> None:
    manifest, reused = build_index(corpus, tmp_path / "deep" / "index", retriever=retriever)
    opened = open_index(tmp_path / "deep" / "index")
    assert not reused
    assert opened.manifest == manifest
    assert opened.passages is not None
    assert list(opened.passages) == list(TOWNS)
    assert [hit.passage.id for hit in opened.retriever.search(["weavers"], 3)[0]] == ["e"]
    assert check_integrity(opened) == len(TOWNS) == manifest.passages
    assert manifest.bytes == sum(p.stat().st_size for p in opened_files(tmp_path / "deep" / "index"))
    assert {"bm25s", "numpy", "python", "dgpo-cli"} <= manifest.versions.keys()


def opened_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]


def test_the_same_build_is_reused_and_another_refused(tmp_path: Path, corpus: Path, index: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in opened_files(index)}
    manifest, reused = build_index(corpus, index)
    assert reused
    assert before == {p: p.stat().st_mtime_ns for p in opened_files(index)}
    with pytest.raises(ConfigError, match="of this corpus with another k1") as refused:
        build_index(corpus, index, settings={"k1": "2.0"})
    assert "--overwrite" in (refused.value.hint or "")
    with pytest.raises(ConfigError, match="of this corpus by bm25"):
        build_index(corpus, index, retriever="rank-bm25")
    other = write_corpus(tmp_path / "other.jsonl", TOWNS[:3])
    with pytest.raises(ConfigError, match="of another corpus"):
        build_index(other, index)
    replaced, reused = build_index(other, index, overwrite=True)
    assert (replaced.passages, reused) == (3, False)
    assert replaced.digest != manifest.digest
    assert names(tmp_path) == ["index", "other.jsonl", "towns.jsonl"], "nothing is left beside it"


def test_the_digest_is_that_of_what_a_search_returns(tmp_path: Path, corpus: Path) -> None:
    first = build_index(corpus, tmp_path / "a")[0]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    assert build_index(copy, tmp_path / "b")[0].digest == first.digest
    assert build_index(corpus, tmp_path / "c", settings={"b": 0.5})[0].digest != first.digest


@pytest.mark.parametrize("holds", ["a file", "a folder of somebody's"])
def test_only_an_index_is_ever_replaced(tmp_path: Path, corpus: Path, holds: str) -> None:
    out = tmp_path / "precious"
    if holds == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="is not an index"):
        build_index(corpus, out, overwrite=True)
    assert (out if holds == "a file" else out / "thesis.tex").read_text() == "precious"


def test_strict_is_strict_about_an_index_that_is_there(tmp_path: Path, corpus: Path) -> None:
    corpus.write_bytes(corpus.read_bytes() + b"broken\n")
    manifest, _ = build_index(corpus, tmp_path / "index")
    assert (manifest.skipped, manifest.passages) == (1, len(TOWNS))
    with pytest.raises(InputError, match="line 6"):
        build_index(corpus, tmp_path / "index", strict=True)
    with pytest.raises(InputError, match="line 6"):
        build_index(corpus, tmp_path / "new", strict=True)
    assert names(tmp_path) == ["index", "towns.jsonl"], "a failed build leaves nothing"


def test_unknown_retrievers_and_settings_are_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(ConfigError, match="unknown retriever 'bm52'"):
        build_index(corpus, tmp_path / "i", retriever="bm52")
    with pytest.raises(ConfigError, match="retriever bm25 has no option 'k2'"):
        build_index(corpus, tmp_path / "i", settings={"k2": 1})
    with pytest.raises(ConfigError, match="variant"):
        build_index(corpus, tmp_path / "i", settings={"variant": "bm25+"})


def edit_manifest(index: Path, **values: Any) -> None:
    """As a version wrote it that did not seal manifests."""
    record = json.loads((index / "manifest.json").read_text())
    record.pop("sha256", None)
    (index / "manifest.json").write_text(json.dumps(record | values))


def test_no_flipped_bit_of_a_manifest_is_read(index: Path) -> None:
    file, whole = index / "manifest.json", read_manifest(index)
    content = file.read_bytes()
    refused = 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_manifest(index) == whole
        except RetrievalError:
            refused += 1
    assert refused > 0.9 * len(content)
    file.write_bytes(content.replace(b'"k1": 1.5', b'"k1": 0.8'))
    with pytest.raises(RetrievalError, match=r"manifest.json was changed after it was written"):
        open_index(index)
    file.write_bytes(content)
    edit_manifest(index)
    assert read_manifest(index) == whole, "unsealed, as an earlier version wrote it"


def test_missing_and_truncated_files_are_refused_with_the_command_that_helps(index: Path, corpus: Path) -> None:
    blob = index / PASSAGES
    content = blob.read_bytes()
    blob.write_bytes(content[:-5])
    with pytest.raises(RetrievalError, match=rf"has {len(content) - 5} bytes, {len(content)} were written") as refused:
        open_index(index)
    command = (refused.value.hint or "").partition("dgpo index ")[2].split()
    assert command[:3] == [str(corpus.resolve()), "--out", str(index)]
    blob.unlink()
    with pytest.raises(RetrievalError, match="is missing"):
        open_index(index)
    with pytest.raises(ConfigError, match="not a usable index"):
        build_index(corpus, index)
    assert build_index(corpus, index, overwrite=True)[0].passages == len(TOWNS)
    assert check_integrity(open_index(index)) == len(TOWNS)


def test_the_rebuilding_command_names_settings_other_than_the_defaults(tmp_path: Path, corpus: Path) -> None:
    manifest, _ = build_index(corpus, tmp_path / "i", retriever="rank-bm25", settings={"idf": "lucene"})
    command = manifest.rebuild_command(tmp_path / "i")
    assert (
        command
        == f"dgpo index {corpus.resolve()} --out {tmp_path / 'i'} --retriever rank-bm25 -o idf=lucene --overwrite"
    )


@pytest.mark.parametrize(
    ("retriever", "factory", "count"),
    [("bm25", "", 9), ("rank-bm25", "", 2), ("dense", "Flat", 3), ("dense", "IVF2,SQ8", 3)],
)
def test_one_flipped_bit_in_any_file_is_refused_by_name(
    tmp_path: Path, corpus: Path, retriever: str, factory: str, count: int
) -> None:
    settings: dict[str, Any] = {}
    if factory:
        settings = {"encoder": str(make_encoder(tmp_path / "encoder")), "max_length": 40, "factory": factory}
    build_index(corpus, tmp_path / "index", retriever=retriever, settings=settings)
    files = opened_files(tmp_path / "index")
    assert len(files) == count
    assert {"vectors.npy", "faiss.index"} & set(names(tmp_path / "index")) == (
        {"Flat": {"vectors.npy"}, "IVF2,SQ8": {"faiss.index"}}.get(factory, set())
    )
    for file in files:
        whole = file.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(RetrievalError, match=rf"{file} was changed after it was written") as refused:
                open_index(tmp_path / "index")
            assert "dgpo index" in str(refused.value.hint) and "--overwrite" in str(refused.value.hint)
        file.write_bytes(whole)
    open_index(tmp_path / "index")


def test_of_a_large_file_a_sample_is_read_at_opening_and_all_by_the_check(
    index: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    """An index of an earlier version has no samples: it is opened, and the check finds the fault."""
    blob = index / PASSAGES
    whole = blob.read_bytes()
    middle = whole.index(b"Tarn")
    monkeypatch.setattr(checksums, "_BLOCK", 8)
    monkeypatch.setattr(checksums, "_BLOCKS", 2)
    monkeypatch.setattr(checksums, "READ_WHOLE", 64)
    monkeypatch.setattr(manifests, "READ_WHOLE", 64)
    for sampled in (False, True):
        if sampled:
            build_index(corpus, index, overwrite=True)
            blob.write_bytes(b"X" + whole[1:])
            with pytest.raises(RetrievalError, match="changed after it was written"):
                open_index(index)
        blob.write_bytes(whole[:middle] + b"W" + whole[middle + 1 :])
        opened = open_index(index)
        with pytest.raises(RetrievalError, match=f"{PASSAGES} was changed after it was written"):
            check_integrity(opened)
        blob.write_bytes(whole)


def test_folders_that_are_no_index_are_refused(tmp_path: Path, index: Path) -> None:
    with pytest.raises(RetrievalError, match="does not exist"):
        open_index(tmp_path / "none")
    with pytest.raises(RetrievalError, match="is not an index"):
        open_index(tmp_path)
    edit_manifest(index, format=99)
    with pytest.raises(RetrievalError, match=r"built by a later version of dgpo \(index format 99, this one reads 3\)"):
        open_index(index)
    (index / "manifest.json").write_text("{")
    with pytest.raises(RetrievalError, match="damaged"):
        open_index(index)


def test_an_index_of_an_earlier_version_is_refused_where_its_files_were_others(
    tmp_path: Path, corpus: Path, index: Path
) -> None:
    """As version 2 left it: without the hashes of the words, and with a manifest that does not name them."""
    record = json.loads((index / "manifest.json").read_text())
    for name in ("words.hash.npy", "words.column.npy"):
        (index / "bm25s" / name).unlink()
        del record["files"][f"bm25s/{name}"]
    edit_manifest(index, format=2, files=record["files"])
    with pytest.raises(RetrievalError, match="was built by an earlier version of dgpo") as refused:
        open_index(index)
    again = f"dgpo index {corpus.resolve()} --out {index} --retriever bm25 --overwrite"
    assert refused.value.hint == f"build it again: {again}"
    build_index(corpus, index, overwrite=True)
    assert open_index(index).retriever.search(["mayor"], 1)[0]

    build_index(corpus, tmp_path / "small", retriever="rank-bm25")
    edit_manifest(tmp_path / "small", format=2)
    assert open_index(tmp_path / "small").retriever.search(["mayor"], 1)[0], "its files are as they were"
    edit_manifest(tmp_path / "small", format=1)
    with pytest.raises(RetrievalError, match="was built by an earlier version of dgpo"):
        open_index(tmp_path / "small")


def test_manifests_that_contradict_the_files_are_refused(index: Path) -> None:
    edit_manifest(index, passages=4)
    with pytest.raises(RetrievalError, match="holds 5 passages, its manifest says 4"):
        open_index(index)
    edit_manifest(index, passages=5, settings={"k9": 1})
    with pytest.raises(RetrievalError, match="other settings"):
        open_index(index)


def test_progress_counts_passages(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), f"passage number {n}") for n in range(4_500)))
    calls: list[tuple[int, int]] = []
    build_index(corpus, tmp_path / "i", progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == [2_000, 4_000, 4_500, 0, 2_000, 4_000]


def test_a_killed_build_leaves_no_index_and_the_next_one_replaces_its_leftovers(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), f"passage number {n}") for n in range(4_000)))
    out = tmp_path / "index"
    code = (
        "import os, signal, sys; from pathlib import Path; from dgpo_cli.retrieval.index.build import build_index\n"
        "def kill(done, total):\n"
        "    if done == 2000: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_index(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, str(corpus), str(out)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".index.lock", ".index.writing", "c.jsonl"]
    manifest, reused = build_index(corpus, out)
    assert (manifest.passages, reused) == (4_000, False)
    assert names(tmp_path) == ["c.jsonl", "index"]
    undisturbed = build_index(corpus, tmp_path / "other")[0]
    assert {name: asdict(file) for name, file in manifest.files.items()} == {
        name: asdict(file) for name, file in undisturbed.files.items()
    }


@pytest.mark.parametrize("opened_by", ["search", "the same build", "another build"])
def test_an_index_hidden_by_a_killed_replacement_is_put_back(
    tmp_path: Path, corpus: Path, index: Path, opened_by: str
) -> None:
    """Killed between the two renames: the new one is whole but not in place, the old one under another name."""
    index.rename(tmp_path / ".index.old")
    (tmp_path / ".index.writing").mkdir()
    if opened_by == "search":
        assert open_index(index).retriever.search(["weavers"], 1)[0][0].passage.id == "e"
        return
    if opened_by == "another build":
        with pytest.raises(ConfigError, match="of this corpus with another k1"):
            build_index(corpus, index, settings={"k1": "2.0"})
        return
    assert build_index(corpus, index)[1], "it is there and used as it is"
    assert build_index(corpus, index, overwrite=True)[0].passages == len(TOWNS)
    assert names(tmp_path) == ["index", "towns.jsonl"]


def test_one_build_at_a_time(tmp_path: Path, corpus: Path) -> None:
    """The second one is told who is at it, touches nothing, and a link to the folder is the same folder."""
    out = tmp_path / "index"
    (tmp_path / "link").symlink_to("index")
    refused = []

    def second(done: int, total: int) -> None:
        for place in (out, tmp_path / "link"):
            with pytest.raises(BusyError, match=rf"another process \(pid {os.getpid()}\) works in") as told:
                build_index(corpus, place, overwrite=True)
            refused.append(told.value.hint)

    build_index(corpus, out, progress=second)
    assert "wait for it, or give another --out" in refused
    assert check_integrity(open_index(out)) == len(TOWNS)
    assert names(tmp_path) == ["index", "link", "towns.jsonl"]


def test_a_link_to_an_index_stays_one(tmp_path: Path, corpus: Path, index: Path) -> None:
    (tmp_path / "link").symlink_to("index")
    manifest, _ = build_index(corpus, tmp_path / "link", settings={"k1": "2.0"}, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert open_index(index).manifest == manifest
