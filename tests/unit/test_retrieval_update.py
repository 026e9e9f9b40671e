"""An index of a folder that changed: what is read, what is encoded, and that the result is that of a fresh build."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.retrieval_corpora import TOWNS, write_corpus
from tests.tiny_encoder import make_encoder

from dgpo_cli.errors import ConfigError, InputError, RetrievalError
from dgpo_cli.retrieval.corpus import folder as folders
from dgpo_cli.retrieval.corpus import known
from dgpo_cli.retrieval.dense.encoder import Encoder
from dgpo_cli.retrieval.index import update as updates
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.manifest import read_manifest
from dgpo_cli.retrieval.index.update import IndexUpdate, update_index
from dgpo_cli.retrieval.open import open_index

TIMED = {"seconds", "sha256"}  # of a manifest: when it was built, and the seal over that


def texts(folder: Path) -> Path:
    folder.mkdir()
    for passage in TOWNS:
        (folder / f"{passage.title}.txt").write_text(passage.text, encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"x")
    return folder


def change(folder: Path) -> None:
    """One file is new, one is gone, one changed, one moved, and one was touched only."""
    (folder / "Tarn.txt").unlink()
    (folder / "Lun.txt").write_text("The Lun is a river. It passes a town of weavers.", encoding="utf-8")
    (folder / "Aa.md").write_text("# Aa\nA novel about the mayor.", encoding="utf-8")
    (folder / "Grey Harbour.txt").rename(folder / "A harbour.txt")
    os.utime(folder / "Vesapo.txt", (1, 1))


def described(index: Path) -> dict[str, Any]:
    held = json.loads((index / "manifest.json").read_text())
    return {name: value for name, value in held.items() if name not in TIMED and name != "seal"}


def contents(index: Path) -> dict[str, bytes]:
    files = (path for path in sorted(index.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(index)): path.read_bytes() for path in files}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents of which text was made."""
    seen: list[bytes] = []
    original = folders.read_document

    def counting(content: bytes, suffix: str) -> Any:
        seen.append(content)
        return original(content, suffix)

    monkeypatch.setattr(folders, "read_document", counting)
    return seen


@pytest.mark.parametrize("retriever", ["bm25", "rank-bm25"])
def test_an_update_makes_what_a_fresh_build_makes_and_reads_what_is_new(
    tmp_path: Path, read: list[bytes], retriever: str
) -> None:
    folder, index = texts(tmp_path / "texts"), tmp_path / "index"
    build_index(folder, index, retriever=retriever, settings={"k1": 0.9})
    change(folder)
    read.clear()
    manifest, update = update_index(folder, index)
    assert update == IndexUpdate(files=6, files_read=3, passages=5, passages_encoded=None)
    assert sorted(content[:7] for content in read) == [b"# Aa\nA ", b"Grey Ha", b"The Lun"]
    assert manifest.skipped_by_kind == {"broken JSON": 1, "unknown kind": 1}
    fresh = tmp_path / "fresh"
    build_index(folder, fresh, retriever=retriever, settings={"k1": 0.9})
    assert contents(index) == contents(fresh) and described(index) == described(fresh)
    assert manifest.digest == read_manifest(fresh).digest
    read.clear()
    assert update_index(folder, index) == (read_manifest(index), None) and read == []


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_an_update_encodes_what_is_new(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, retriever: str
) -> None:
    folder, index, fresh = texts(tmp_path / "texts"), tmp_path / "index", tmp_path / "fresh"
    of_dense: dict[str, Any] = {"encoder": str(encoder_folder), "max_length": 16}
    settings = of_dense if retriever == "dense" else {"dense": of_dense}
    build_index(folder, index, retriever=retriever, settings=settings)
    change(folder)
    encoded: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", listening(Encoder.encode, encoded))
        _, update = update_index(folder, index)
    assert update is not None and (update.files_read, update.passages_encoded) == (3, 3)
    assert len(encoded) == 3 and not any("mayor of Vesapo" in text for text in encoded)
    build_index(folder, fresh, retriever=retriever, settings=settings)
    made, wanted = (np.load(place / "vectors.npy") for place in (index, fresh))
    np.testing.assert_allclose(made, wanted, rtol=0, atol=2**-11)
    assert described(index)["state"] == described(fresh)["state"], "what was cut at max_length is counted, too"
    assert described(fresh)["state"].get("dense", described(fresh)["state"])["truncated_passages"] > 0
    asked = ["the mayor", "a river"]
    assert [[hit.passage for hit in hits] for hits in open_index(index).retriever.search(asked, 3)] == [
        [hit.passage for hit in hits] for hits in open_index(fresh).retriever.search(asked, 3)
    ]


def listening(encode: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    def listened(self: Encoder, given: list[str], prefix: str) -> Any:
        seen.extend(given)
        return encode(self, given, prefix)

    return listened


@pytest.mark.parametrize("factory", ["SQ8", "Flat"])
def test_a_compressed_index_and_one_of_another_encoder_are_encoded_as_a_whole(tmp_path: Path, factory: str) -> None:
    folder, index, encoder = texts(tmp_path / "texts"), tmp_path / "index", make_encoder(tmp_path / "encoder")
    build_index(
        folder, index, retriever="dense", settings={"encoder": str(encoder), "factory": factory, "max_length": 48}
    )
    if factory == "Flat":
        make_encoder(encoder, seed=1)
    change(folder)
    _, update = update_index(folder, index)
    assert update is not None and (update.files_read, update.passages_encoded) == (3, 5)


def test_an_interrupted_update_leaves_the_index_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = texts(tmp_path / "texts"), tmp_path / "index"
    build_index(folder, index)
    before = contents(index)
    change(folder)
    with monkeypatch.context() as patch:
        patch.setattr(updates, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            update_index(folder, index)
    assert contents(index) == before
    assert update_index(folder, index)[1] is not None


def interrupted(*_: object) -> Iterator[None]:
    raise KeyboardInterrupt


def test_what_other_versions_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = texts(tmp_path / "texts"), tmp_path / "index"
    monkeypatch.setattr(known, "_readers", lambda: {"dgpo-cli": "0.0.0"})
    build_index(folder, index)
    monkeypatch.undo()
    (folder / "more.txt").write_text("More.", encoding="utf-8")
    _, update = update_index(folder, index)
    assert update is not None and update.files_read == update.files == 7


def test_passages_that_moved_are_read_again(tmp_path: Path) -> None:
    """Two files whose names read alike give one id twice, and the second one's passage is in no index."""
    folder, index = tmp_path / "texts", tmp_path / "index"
    folder.mkdir()
    (folder / os.fsdecode(b"a\xff.txt")).write_text("One.")
    (folder / "a\\xff.txt").write_text("Two.")
    (folder / "b.txt").write_text("Three.")
    (folder / "c.txt").write_text("Four.")
    build_index(folder, index)
    (folder / "d.txt").write_text("Five.")
    update_index(folder, index)
    fresh = tmp_path / "fresh"
    build_index(folder, fresh)
    assert contents(index) == contents(fresh)


def test_a_project_that_moved_is_updated_and_a_copy_is_not_taken_for_it(tmp_path: Path, read: list[bytes]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    build_index(texts(here / "texts"), here / "index")
    shutil.copytree(here, tmp_path / "copy")
    assert update_index(tmp_path / "copy" / "texts", tmp_path / "copy" / "index")[1] is None
    change(tmp_path / "copy" / "texts")
    with pytest.raises(ConfigError, match="holds an index of another corpus"):
        update_index(tmp_path / "copy" / "texts", tmp_path / "copy" / "index")
    there = here.rename(tmp_path / "there")
    change(there / "texts")
    read.clear()
    _, done = update_index(there / "texts", there / "index")
    assert done is not None and done.files_read == len(read) < done.files
    build_index(there / "texts", tmp_path / "fresh")
    assert contents(there / "index") == contents(tmp_path / "fresh")
    assert read_manifest(there / "index").corpus == str(there / "texts")
    build_index(write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "of a file")
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds an index of another corpus"):
        update_index(there / "texts", tmp_path / "of a file")


def test_what_cannot_be_updated_is_refused(tmp_path: Path) -> None:
    folder, index = texts(tmp_path / "texts"), tmp_path / "index"
    with pytest.raises(RetrievalError, match="does not exist"):
        update_index(folder, index)
    build_index(folder, index)
    change(texts(tmp_path / "others"))
    with pytest.raises(ConfigError, match="holds an index of another corpus"):
        update_index(tmp_path / "others", index)
    with pytest.raises(ConfigError, match="is no folder"):
        update_index(write_corpus(tmp_path / "towns.jsonl"), index)
    with pytest.raises(InputError, match=r"broken\.json: broken JSON"):
        update_index(folder, index, strict=True)
    (index / "passages.jsonl").write_bytes((index / "passages.jsonl").read_bytes().replace(b"mayor", b"baker"))
    (folder / "more.txt").write_text("More.", encoding="utf-8")
    with pytest.raises(RetrievalError, match="was changed after it was written"):
        update_index(folder, index)


def test_the_command_tells_what_it_read(dgpo: Any, folder: Path) -> None:
    texts(folder / "texts")
    assert dgpo("index", "texts").status == 0
    (folder / "texts" / "more.txt").write_text("More.", encoding="utf-8")
    ended = dgpo("index", "texts", "--update")
    assert ended.status == 0 and "1 of 7 files were read" in ended.err
    assert "up to date and used as it is" in dgpo("index", "texts", "--update").out
    refused = dgpo("index", "texts", "--update", "-o", "k1=0.9")
    assert refused.status == 1 and "--update keeps the retriever and the settings" in refused.err


def test_an_index_of_documents_that_changed_proposes_its_update(tmp_path: Path) -> None:
    documents, out = tmp_path / "documents", tmp_path / "index"
    documents.mkdir()
    (documents / "a.txt").write_text("Oslo is the capital of Norway.")
    build_index(documents, out)
    (documents / "b.txt").write_text("Bergen is a town.")
    with pytest.raises(ConfigError, match=r"holds an index of what .*documents held before it changed") as caught:
        build_index(documents, out)
    assert "--update" in str(caught.value.hint) and "--overwrite" in str(caught.value.hint)
