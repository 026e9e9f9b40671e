"""JSONL on disk: errors name the line, a kill loses at most the line being written, nothing is half replaced."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_cli.core import records
from dgpo_cli.core.records import (
    RecordFile,
    parse_line,
    read_jsonl,
    read_records,
    to_json,
    write_atomic,
    write_jsonl_atomic,
)
from dgpo_cli.errors import InputError


@dataclass(frozen=True, slots=True)
class Pair:
    share: float
    place: Path


def make(path: Path, **meta: object) -> RecordFile:
    return RecordFile(path, key="id", schema="rows", meta=meta)


def test_lines_come_with_their_numbers_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n  \n{"a": "ü"}', encoding="utf-8")
    assert list(read_jsonl(file)) == [(1, {"a": 1}), (4, {"a": "ü"})]


def test_gz_is_read_like_the_plain_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [row["a"] for _, row in read_jsonl(file)] == [1, 2]


@pytest.mark.parametrize("write", [lambda path: write_atomic(path, "x"), lambda path: write_jsonl_atomic(path, [{}])])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "ring", "link to the fifo"])
def test_only_a_file_is_replaced(tmp_path: Path, write, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    elif kind == "ring":
        place.symlink_to(place)
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        os.mkfifo(tmp_path / "fifo")
        place.symlink_to("fifo") if "link" in kind else (tmp_path / "fifo").rename(place)
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    with pytest.raises(OSError) as told:
        write(place)
    assert told.value.filename and told.value.strerror
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    for content in ("made", "replaced"):
        write_atomic(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == content


def test_a_byte_order_mark_is_not_content(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_jsonl(file)) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": 1', "not JSON"),
        (b"[1]", "a list, not an object"),
        (b"3", "a int, not an object"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        ('{"a": "Größe"}'.encode("latin-1"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "not UTF-8"),
        (b'{"a": "\\uDCFF"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=["torn", "list", "number", "utf-16", "latin-1", "surrogate", "surrogate-upper", "huge-number", "deep"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"good": 1}\n' + line + b"\n")
    with pytest.raises(InputError) as caught:
        list(read_jsonl(file))
    assert caught.value.message.startswith(f"{file}:2: ")
    assert says in caught.value.message
    assert caught.value.hint


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_line(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b'{"a": 1}\n' * 1000)[:-20]], ids=["no-gzip", "cut-off"]
)
def test_a_damaged_gz_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: "):
        list(read_jsonl(file))


def test_a_gz_with_a_flipped_byte_is_named(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b'{"a": 1}\n' + bytes(range(32, 127)) * 50))
    content[20] ^= 0xFF
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(bytes(content))
    with pytest.raises(InputError):
        list(read_jsonl(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: No such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


def test_an_atomic_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_atomic(file, "old")

    def rows() -> object:
        yield {"a": 1}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_jsonl_atomic(file, rows())  # type: ignore[arg-type]
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(text, json_values), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    write_jsonl_atomic(file, rows)
    assert [row for _, row in read_jsonl(file)] == rows


def test_a_record_file_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    with make(file, seed=1) as first:
        first.append({"id": "a", "x": 1})
    with make(file, seed=1) as second:
        assert second.keys == {"a"}
        second.append({"id": "b", "x": 2})
        assert [row["x"] for row in second.rows()] == [1, 2]
    assert json.loads(file.read_text().splitlines()[0]) == {"schema": "rows", "version": 1, "seed": 1}


@pytest.mark.parametrize("lost", range(1, 20))
def test_a_torn_last_line_is_dropped_whatever_was_lost_of_it(tmp_path: Path, lost: int) -> None:
    file = tmp_path / "rows.jsonl"
    with make(file) as first:
        first.append({"id": "a"})
        first.append({"id": "bcdefghijk"})
    content = file.read_bytes()
    assert len(content.splitlines()[-1]) + 1 > 19
    file.write_bytes(content[:-lost])
    with make(file) as again:
        assert again.keys == {"a"}
        again.append({"id": "bcdefghijk"})
    assert file.read_bytes() == content


def test_a_torn_header_starts_anew(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"schema": "ro')
    with make(file) as again:
        assert again.keys == set()
    assert file.read_text() == '{"schema": "rows", "version": 1}\n'


def test_blank_lines_alone_are_no_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n \n")
    make(file).close()
    assert file.read_text() == '{"schema": "rows", "version": 1}\n'


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with make(file) as first:
        first.append({"id": "a"})
    size = file.stat().st_size
    with open(file, "ab") as stream:
        stream.write(b'{"id": "' + b"x" * 200_000)
    make(file).close()
    assert file.stat().st_size == size


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    make(file, seed=1, model="m").close()
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        make(file, seed=2, model="m")
    assert file.read_bytes() == before


def test_a_key_is_written_once(tmp_path: Path) -> None:
    with make(tmp_path / "rows.jsonl") as rows:
        rows.append({"id": "a"})
        with pytest.raises(ValueError, match="already holds 'a'"):
            rows.append({"id": "a"})


@pytest.mark.parametrize("row", ['{"id": "a"}', '{"x": 1}'], ids=["twice", "none"])
def test_a_file_with_wrong_keys_is_refused(tmp_path: Path, row: str) -> None:
    file = tmp_path / "rows.jsonl"
    with make(file) as rows:
        rows.append({"id": "a"})
    with open(file, "a") as stream:
        stream.write(row + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:3"):
        make(file)


def test_records_of_another_schema_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with make(file, seed=1) as rows:
        rows.append({"id": "a"})
    header, lines = read_records(file, "rows")
    assert header["seed"] == 1
    assert list(lines) == [(2, {"id": "a"})]
    with pytest.raises(InputError, match="is not a file of trajectories: its header says 'rows'"):
        read_records(file, "trajectories")


def test_an_empty_file_is_no_record_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(InputError):
        read_records(tmp_path / "rows.jsonl", "rows")


def test_a_record_is_the_object_of_its_fields_wherever_it_stands() -> None:
    pair = Pair(0.5, Path("a/b"))
    assert to_json({"pairs": [pair], "one": pair}) == (
        '{"pairs": [{"share": 0.5, "place": "a/b"}], "one": {"share": 0.5, "place": "a/b"}}'
    )
    assert to_json([Pair(math.nan, Path("a"))]) == '[{"share": null, "place": "a"}]'
    with pytest.raises(TypeError, match="set is nothing that JSON has"):
        to_json({"names": {"a"}})


def test_dump_line_is_one_line() -> None:
    assert records.dump_line({"a": "x\ny ü"}) == '{"a": "x\\ny ü"}\n'
