"""Corpus files: both forms, and every kind of bad line."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from tests.retrieval_corpora import TOWNS, write_corpus

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus import CorpusReport, corpus_digest, read_corpus

GOOD = b'{"id": "good", "contents": "\\"T\\"\\ntext"}\n'
BAD_LINES = {
    "broken JSON": (b'{"id": "1", "contents": \n', "not JSON"),
    "an array": (b"[1]\n", "not an object"),
    "latin-1": ('{"id": "1", "contents": "é"}\n'.encode("latin-1"), "not UTF-8"),
    "no id": (b'{"contents": "x"}\n', "no id"),
    "empty id": (b'{"id": "", "contents": "x"}\n', "the id is ''"),
    "an id that is a list": (b'{"id": [1], "contents": "x"}\n', "the id is [1]"),
    "an id that is true": (b'{"id": true, "contents": "x"}\n', "the id is True"),
    "no text": (b'{"id": "1", "title": "x"}\n', "neither contents nor title and text"),
    "contents that are a number": (b'{"id": "1", "contents": 3}\n', "neither contents nor title and text"),
    "empty passage": (b'{"id": "1", "contents": "\\"\\"\\n  "}\n', "empty passage"),
    "duplicate id": (b'{"id": "good", "contents": "again"}\n', "id 'good' occurs twice"),
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
