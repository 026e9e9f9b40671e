"""An index encoded in parts and merged is the one that a single build makes, file by file."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.retrieval_corpora import write_corpus
from tests.tiny_encoder import WORDS, make_encoder

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, RetrievalError
from dgpo_cli.retrieval.dense import vectors
from dgpo_cli.retrieval.index import part
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.index.part import parse_part, read_part
from dgpo_cli.retrieval.index.parts import build_part, build_together, merge_parts
from dgpo_cli.retrieval.open import open_index

LONG = " ".join(["river"] * 60)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SHARD", 3)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """23 passages, so 8 blocks, the last one not full; two lines of no use; one passage that is cut."""
    texts = [f"{WORDS[n % len(WORDS)]} town {WORDS[-n % len(WORDS)]} " * (1 + n % 3) for n in range(22)]
    path = write_corpus(
        tmp_path / "c.jsonl", (Passage(str(n), text) for n, text in enumerate([*texts[:9], LONG, *texts[9:]]))
    )
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "broken", *lines[1:12], lines[3], *lines[12:]]) + "\n")
    return path


@pytest.fixture
def make(corpus: Path, tmp_path: Path, encoder_folder: Path) -> Callable[..., Path]:
    def run(number: int, of: int, *, retriever: str = "dense", name: str = "part", **changed: Any) -> Path:
        settings = {"encoder": str(encoder_folder), "max_length": 40, "batch_size": 2} | changed
        out = tmp_path / f"{name}-{number}"
        given = settings if retriever == "dense" else {"dense": settings}
        build_part(corpus, out, number, of, retriever=retriever, settings=given)
        return out

    return run


def same_but_time(one: Path, other: Path) -> None:
    ours, theirs = (
        json.loads((folder / "manifest.json").read_text()) | {"seconds": 0, "sha256": ""} for folder in (one, other)
    )
    assert ours == theirs
    for name in ours["files"]:
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize(("of", "factory"), [(2, "Flat"), (3, "IVF2,SQ8"), (8, "Flat")])
def test_merged_parts_are_an_undivided_build(
    make: Callable[..., Path], corpus: Path, tmp_path: Path, encoder_folder: Path, of: int, factory: str
) -> None:
    settings = {"encoder": str(encoder_folder), "max_length": 40, "batch_size": 2, "factory": factory}
    whole, _ = build_index(corpus, tmp_path / "whole", retriever="dense", settings=settings)
    assert (whole.passages, whole.skipped, whole.state["truncated_passages"]) == (23, 2, 1)
    folders = [make(number, of, factory=factory) for number in range(of, 0, -1)]
    assert sum(read_part(folder).rows for folder in folders) == 23
    merged, reused = merge_parts(folders, tmp_path / "merged")
    assert not reused
    same_but_time(tmp_path / "merged", tmp_path / "whole")
    assert merged.digest == whole.digest
    queries = ["river town", "mayor"]
    assert open_index(tmp_path / "merged").retriever.search(queries, 5) == open_index(
        tmp_path / "whole"
    ).retriever.search(queries, 5)
    assert merge_parts(folders, tmp_path / "merged") == (merged, True)
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"


def test_a_hybrid_index_is_merged_too(
    make: Callable[..., Path], corpus: Path, tmp_path: Path, encoder_folder: Path
) -> None:
    settings = {"dense": {"encoder": str(encoder_folder), "max_length": 40, "batch_size": 2}}
    build_index(corpus, tmp_path / "whole", retriever="hybrid", settings=settings)
    merge_parts([make(1, 2, retriever="hybrid"), make(2, 2, retriever="hybrid")], tmp_path / "merged")
    same_but_time(tmp_path / "merged", tmp_path / "whole")


def test_a_part_goes_on_from_what_was_encoded_and_is_used_as_it_is(
    make: Callable[..., Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make(1, 2, name="whole")
    encode, encoded = vectors.Encoder.encode, []

    def stopping(self: Any, texts: Any, prefix: str) -> Any:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return encode(self, texts, prefix)

    monkeypatch.setattr(vectors.Encoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(1, 2)
    encoded.clear()
    with pytest.raises(KeyboardInterrupt):
        make(2, 2)  # another part shares nothing with it
    encoded.clear()
    out = make(1, 2)
    assert encoded == [3, 3], "two of four blocks were there"
    assert sorted(p.name for p in (out / "shards").iterdir()) == sorted(
        p.name for p in (undisturbed / "shards").iterdir()
    )
    for file in (out / "shards").glob("*.npy"):
        assert file.read_bytes() == (undisturbed / "shards" / file.name).read_bytes()
    encoded.append(0)
    assert make(1, 2) == out, "nothing is encoded again"


def test_parts_that_do_not_fit_are_refused(
    make: Callable[..., Path], corpus: Path, tmp_path: Path, encoder_folder: Path
) -> None:
    first, second = make(1, 2), make(2, 2)
    out = tmp_path / "merged"
    with pytest.raises(ConfigError, match="part 2 of 2 is missing") as missing:
        merge_parts([first], out)
    assert "--shard 2/2" in (missing.value.hint or "")
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    with pytest.raises(ConfigError, match="3 folders for 2 parts"):
        merge_parts([first, second, copy], out)
    with pytest.raises(ConfigError, match="two indexes: another of"):
        merge_parts([first, make(2, 3, name="third")], out)
    with pytest.raises(ConfigError, match=r"another settings, encoding$"):
        merge_parts([first, make(2, 2, name="short", max_length=20)], out)
    with pytest.raises(ConfigError, match="holds another part"):
        make(1, 2, max_length=20)
    corpus.write_text(corpus.read_text() + '{"id": "new", "contents": "x"}\n')
    with pytest.raises(ConfigError, match="another corpus_digest, passages"):
        merge_parts([first, make(2, 2, name="longer")], out)
    assert not out.exists()


def test_damaged_parts_and_other_folders_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make(1, 2), make(2, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=r"empty is no part of an index"):
        merge_parts([first, tmp_path / "empty"], tmp_path / "merged")
    (second / "shards" / f"{0:012}.npy").unlink()
    with pytest.raises(RetrievalError, match=r"0000\.npy is missing"):
        merge_parts([first, second], tmp_path / "merged")
    record = json.loads((first / part.FILE).read_text())
    (first / part.FILE).write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(RetrievalError, match="part format 99, not 1"):
        read_part(first)
    (first / part.FILE).write_text("{")
    with pytest.raises(RetrievalError, match="damaged"):
        read_part(first)
    with pytest.raises(RetrievalError, match="is not an index"):
        open_index(second)


def test_one_flipped_bit_in_a_part_is_refused_by_name(make: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make(1, 2), make(2, 2)
    files = [p for p in second.rglob("*") if p.is_file() and p.name not in (part.FILE, "encoding.json")]
    assert len(files) == 2 + 2 * 4
    for file in files:
        written = file.read_bytes()
        for at in (0, len(written) // 2, len(written) - 1):
            file.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
            with pytest.raises(RetrievalError, match=rf"{file.with_suffix('')}\.\w+ .*(changed|damaged)") as refused:
                merge_parts([first, second], tmp_path / "merged")
            assert "--shard i/n" in (refused.value.hint or "")
            assert not (tmp_path / "merged").exists()
        file.write_bytes(written)
    merge_parts([first, second], tmp_path / "merged")


def test_one_flipped_bit_in_the_record_of_a_part_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    """All but the number of the part is the same in all parts, or compared with its files."""
    first, second = make(1, 2), make(2, 2)
    record = second / part.FILE
    written = record.read_bytes()
    for at in range(0, len(written), 7):
        record.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
        if record.read_bytes().split() == written.split():
            continue
        with pytest.raises((RetrievalError, ConfigError)):
            merge_parts([first, second], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_parts_of_another_encoder_are_refused_where_they_are_merged(
    make: Callable[..., Path], tmp_path: Path, encoder_folder: Path
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder)
    built = [make(number, 2, encoder=str(folder)) for number in (1, 2)]
    make_encoder(folder, seed=1)
    with pytest.raises(RetrievalError, match=r"with other .*encoder weights"):
        merge_parts(built, tmp_path / "merged")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match="is no part"):
        parse_part(text)
    assert parse_part("2/4") == (2, 4)


def test_what_cannot_be_divided(make: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 8 blocks of 3 passages, so part 9 would be empty"):
        make(9, 9)
    with pytest.raises(ConfigError, match="bm25 encodes nothing"):
        build_part(corpus, tmp_path / "p", 1, 2, retriever="bm25", settings={})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is no part of an index"):
        build_part(corpus, tmp_path / "full", 1, 2, retriever="dense", settings={})


def test_processes_that_build_together(
    make: Callable[..., Path], corpus: Path, tmp_path: Path, encoder_folder: Path
) -> None:
    """The first of them finds a part of another encoding left over, and waits for the second's."""
    settings = {"encoder": str(encoder_folder), "max_length": 40, "batch_size": 2}
    build_index(corpus, tmp_path / "whole", retriever="dense", settings=settings)
    make(2, 2, name=".out.parts/x", max_length=20).rename(tmp_path / ".out.parts" / "2-of-2")
    results: dict[int, Any] = {}

    def process(rank: int) -> None:
        results[rank] = build_together(corpus, tmp_path / "out", rank, 2, retriever="dense", settings=settings)

    first = threading.Thread(target=process, args=(0,))
    first.start()
    first.join(timeout=2)
    assert first.is_alive(), "it must not merge with what was left over"
    process(1)
    first.join(timeout=60)
    assert results[1] is None
    assert results[0][1] is False
    same_but_time(tmp_path / "out", tmp_path / "whole")
    assert not (tmp_path / ".out.parts").exists()
    process(0)
    process(1)
    assert results == {0: (results[0][0], True), 1: None}
    assert asdict(results[0][0])["passages"] == 23


def test_a_part_whose_record_was_changed_is_refused(make: Callable[..., Path]) -> None:
    folder = make(1, 2)
    file = folder / "part.json"
    file.write_text(file.read_text().replace('"max_length": 40', '"max_length": 41'))
    with pytest.raises(RetrievalError, match=r"part\.json was changed after it was written"):
        read_part(folder)
