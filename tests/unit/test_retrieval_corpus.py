"""Corpus files: both forms, and every kind of bad line."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from tests.retrieval_corpora import TOWNS, write_corpus

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.reader import CorpusReport, corpus_digest, corpus_name, read_corpus

GOOD = b'{"id": "good", "contents": "\\"T\\"\\ntext"}\n'
BAD_LINES = {
    "broken JSON": (b'{"id": "1", "contents": \n', "not JSON"),
    "an array": (b"[1]\n", "not an object"),
    "latin-1": ('{"id": "1", "contents": "é"}\n'.encode("latin-1"), "not UTF-8"),
    "no id": (b'{"contents": "x"}\n', "no id"),
    "empty id": (b'{"id": "", "contents": "x"}\n', "bad id ('')"),
    "an id that is a list": (b'{"id": [1], "contents": "x"}\n', "bad id ([1])"),
    "an id that is true": (b'{"id": true, "contents": "x"}\n', "bad id (True)"),
    "no text": (b'{"id": "1", "title": "x"}\n', "neither contents nor title and text"),
    "contents that are a number": (b'{"id": "1", "contents": 3}\n', "neither contents nor title and text"),
    "empty passage": (b'{"id": "1", "contents": "\\"\\"\\n  "}\n', "empty passage"),
    "duplicate id": (b'{"id": "good", "contents": "again"}\n', "duplicate id ('good')"),
    "oversized passage": (b'{"id": "1", "contents": "' + b"x" * 100_001 + b'"}\n', "oversized passage (100,001 charac"),
    "half a surrogate pair": (b'{"id": "1", "contents": "\\ud800"}\n', "not UTF-8"),
}


def read(path: Path, *, strict: bool = False) -> tuple[list[Passage], CorpusReport]:
    report = CorpusReport()
    return list(read_corpus(path, report, strict=strict)), report


def test_both_forms_give_the_same_passages(tmp_path: Path) -> None:
    contents = write_corpus(tmp_path / "contents.jsonl")
    parts = tmp_path / "parts.jsonl"
    parts.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in TOWNS))
    assert read(contents)[0] == read(parts)[0] == list(TOWNS)


def test_numbers_as_ids_and_titles_over_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": 7, "title": "Two\\nlines ", "text": "body"}\n\n{"id": 8, "text": "untitled"}')
    (first, second), report = read(path)
    assert (first.id, first.title, first.text) == ("7", "Two lines", "body")
    assert (second.id, second.title, second.text) == ("8", "", "untitled")
    assert (report.passages, report.skipped) == (2, 0)


def test_the_form_of_beir_and_a_missing_title(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'{"_id": "doc1", "title": "T", "text": "body", "metadata": {}}\n{"_id": 2, "title": null, "text": "x"}\n'
    )
    (first, second), _ = read(path)
    assert (first.id, first.title, first.text) == ("doc1", "T", "body")
    assert (second.id, second.title, second.text) == ("2", "", "x")


def test_zstandard_reads_as_the_plain_file(tmp_path: Path) -> None:
    plain = write_corpus(tmp_path / "c.jsonl")
    packed = tmp_path / "c.jsonl.zst"
    frame = pyarrow.Codec("zstd").compress(plain.read_bytes(), asbytes=True)
    packed.write_bytes(frame)
    assert read(packed) == read(plain)
    packed.write_bytes(frame[:-5])
    with pytest.raises(InputError, match=r"c\.jsonl\.zst.*[Tt]runcated"):
        read(packed)
    packed.write_bytes(plain.read_bytes())
    with pytest.raises(InputError, match="ZSTD"):
        read(packed)


def test_parquet_reads_as_lines(tmp_path: Path) -> None:
    rows = [{"id": p.id, "title": p.title, "text": p.text, "embedding": [0.5, 1.0]} for p in TOWNS]
    rows += [rows[0], rows[1] | {"id": None}]
    path = tmp_path / "c.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    passages, report = read(path)
    assert passages == list(TOWNS)
    assert report.problems == ["row 6: duplicate id ('a')", "row 7: no id"]
    assert report.digest == corpus_digest(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"c\.parquet"):
        read(path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "none.parquet")


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a local folder where it takes a name; the way from its rows to passages is the same."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "repo").mkdir()
    rows = [{"_id": p.id, "title": p.title, "text": p.text, "n": 1} for p in TOWNS]
    parquet.write_table(pyarrow.Table.from_pylist([*rows, rows[0]]), tmp_path / "repo" / "corpus.parquet")
    report = CorpusReport()
    location = f"hf:{tmp_path / 'repo'}"
    assert list(read_corpus(location, report)) == list(TOWNS)
    assert (report.problems, report.digest) == (["row 6: duplicate id ('a')"], corpus_digest(location))
    with pytest.raises(InputError, match='Unknown split "dev"'):
        corpus_digest(f"{location}:dev")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        corpus_digest("hf:nobody/nothing:train")
    with pytest.raises(InputError, match="no data set"):
        corpus_digest("hf:a:b:c:d")


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("data/wiki.jsonl.gz", "wiki"),
        ("wiki.jsonl.zst", "wiki"),
        ("w.parquet", "w"),
        ("hf:BeIR/scifact:corpus:corpus", "scifact-corpus-corpus"),
        ("hf:squad", "squad"),
    ],
)
def test_an_index_is_named_after_its_corpus(location: str, name: str) -> None:
    assert corpus_name(location) == name


def test_gzip_and_byte_order_mark_read_as_the_plain_file(tmp_path: Path) -> None:
    plain = write_corpus(tmp_path / "c.jsonl")
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read(packed)[0] == read(marked)[0] == list(TOWNS)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    assert read(plain)[1].digest == read(packed)[1].digest == corpus_digest(packed) == digest


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_counted_with_its_number_or_fatal(tmp_path: Path, kind: str) -> None:
    line, problem = BAD_LINES[kind]
    path = tmp_path / "c.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b'{"id": "last", "contents": "x y"}\n')
    passages, report = read(path)
    assert [p.id for p in passages] == ["good", "last"]
    assert (report.passages, report.skipped) == (2, 1)
    assert report.problems[0].startswith("line 3: ")
    assert problem in report.problems[0]
    assert report.kinds == {report.problems[0].removeprefix("line 3: ").partition(" (")[0]: 1}
    with pytest.raises(InputError, match="line 3: ") as error:
        read(path, strict=True)
    assert str(path) in error.value.message


def test_the_first_ten_problems_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(GOOD + b"x\n" * 25)
    report = read(path)[1]
    assert report.skipped == 25
    assert [p.split(":")[0] for p in report.problems] == [f"line {n}" for n in range(2, 12)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "no usable passage"),
        ("blank.jsonl", b"\n\n", "no usable passage"),
        ("utf16.jsonl", '{"id": "1", "contents": "x"}\n'.encode("utf-16"), "line 1: not UTF-8"),
        ("plain.jsonl.gz", GOOD, "[Gg]zip"),
        ("cut.jsonl.gz", gzip.compress(GOOD * 50, mtime=0)[:-20], "end"),
        (
            "flipped.jsonl.gz",
            gzip.compress(GOOD, mtime=0)[:12] + b"\xff\xff" + gzip.compress(GOOD, mtime=0)[14:],
            "flipped",
        ),
    ],
)
def test_a_file_without_a_usable_line_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert name in error.value.message
    assert error.value.hint


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError):
            read(path)


def test_progress_estimates_the_total_from_the_bytes_read(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl", (Passage(str(n), f"passage number {n:06}") for n in range(20_000)))
    calls: list[tuple[int, int]] = []
    for _ in read_corpus(path, CorpusReport(), progress=lambda done, total: calls.append((done, total))):
        pass
    assert calls[-1] == (20_000, 20_000)
    assert all(done <= total for done, total in calls)
    assert 15_000 < calls[len(calls) // 2][1] < 25_000
