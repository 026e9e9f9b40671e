"""Text from outside: bytes to text and JSON, limits, and what a terminal may be shown."""

from __future__ import annotations

import errno
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest

from dgpo_cli.core.text import composed
from dgpo_cli.core.untrusted import (
    DEEPEST,
    decoded,
    has_surrogates,
    lines,
    open_file,
    parse_json,
    questions_in,
    visible,
    visible_json,
)
from dgpo_cli.errors import InputError

BAD = "\N{REPLACEMENT CHARACTER}"
STEERING = [
    *(chr(code) for code in range(0xA0) if chr(code) not in "\t\n" and (code < 0x20 or code >= 0x7F)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\U000e0041",
    "\udce9",
]


@pytest.mark.parametrize("character", STEERING, ids=lambda c: f"U+{ord(c):04X}")
def test_what_would_steer_a_terminal_is_shown_and_stays_the_same_in_json(character: str) -> None:
    assert visible(f"a{character}b") == f"a{BAD}b"
    written = visible_json(json.dumps({"a": f"x{character}y"}, ensure_ascii=False))
    assert character not in written and json.loads(written) == {"a": f"x{character}y"}


def test_text_is_shown_as_it_is() -> None:
    text = "a\tb\nZürich 東京 हिन्दी ع 👩‍🔬 é e\u0301"
    assert visible(text) == text == visible_json(text)
    assert visible("a\r\nb\r") == f"a\nb{BAD}"


def test_a_byte_order_mark_is_no_text() -> None:
    assert decoded(b"\xef\xbb\xbfWhere?", "x") == "Where?"
    assert parse_json(b"\xef\xbb\xbf[1]", "x") == [1]
    assert decoded(b"\xef\xbb\xbf\xef\xbb\xbfWhere?", "x") == "Where?", "of two files that were put together"
    assert parse_json(b"\xef\xbb\xbf\xef\xbb\xbf[1]", "x") == [1]


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfea\0", b"a\0b", b"\xed\xa0\x80"])
def test_what_is_no_text_is_refused_by_its_place(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^line 3: "):
        decoded(content, "line 3")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 10_000, 1_000_000])
def test_deep_json_is_refused(opening: bytes, depth: int) -> None:
    closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opening]
    with pytest.raises(InputError, match="inside each other"):
        parse_json(opening * depth + b"1" + closing * depth, "x")


def test_json_up_to_the_limit_is_read() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "x")
    assert len(parse_json("[" + "[]," * 1000 + "[]]", "x")) == 1001


@pytest.mark.parametrize("content", ["", "{", "1" * 5000, "[1,]", '"\\ud800"', "\0", "nul"])
def test_no_json_is_refused(content: str) -> None:
    with pytest.raises(InputError, match=r"^x: not"):
        parse_json(content, "x")


def test_an_overlong_line_is_told_and_passed_over() -> None:
    seen = []
    content = b"ab\n" + b"c" * 25 + b"\nd\n" + b"e" * 10
    assert list(lines(io.BytesIO(content), 10, seen.append)) == [b"ab\n", None, b"d\n", b"e" * 10]
    assert b"".join(seen) == content
    assert list(lines(io.BytesIO(b"f" * 11), 10)) == [None]


def test_questions_are_those_lines_that_are_text() -> None:
    content = b"\xef\xbb\xbfWhere?\n\ncaf\xe9?\r\n  Who was e\xcc\x81?  \r\n" + b"x" * 500_000 + b"\nlast"
    found = [(number, q if isinstance(q, str) else q.message) for number, q in questions_in(io.BytesIO(content))]
    assert [found[0], found[2], found[4]] == [(1, "Where?"), (4, "Who was \u00e9?"), (6, "last")]
    assert found[1][0] == 3 and found[1][1].startswith("line 3 of the input: not UTF-8 (byte 0xe9 at 3")
    assert found[3] == (5, "line 5 of the input: oversized line (more than 400,000 bytes)")


def test_composed_text_is_unicodes_form_c() -> None:
    for text in ("abc", "e\u0301a\u0323\u0302", "\u1112\u1161\u11ab", "e" + "\u0301" * 30, "\u0301\u0301a"):
        assert composed(text) == unicodedata.normalize("NFC", text)
    many = composed("e" + "\u0301\u0323" * 40)
    assert many[0] == "\u1eb9" and composed(many) == composed(many)


def test_surrogates_are_found() -> None:
    assert has_surrogates("a\udce9") and not has_surrogates("aé😀")


def _odd_places(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "link.jsonl").symlink_to("/dev/zero")
    (folder / "folder.jsonl").mkdir()
    places = ("pipe.jsonl", "link.jsonl", "folder.jsonl")
    return {name: folder / name for name in places} | {"device": Path("/dev/full"), "null": Path("/dev/null")}


@pytest.mark.parametrize("place", ["pipe.jsonl", "link.jsonl", "folder.jsonl", "device", "null"])
def test_only_a_file_is_opened(tmp_path: Path, place: str) -> None:
    """A pipe would wait for a writer for ever, and /dev/zero has no end."""
    path = _odd_places(tmp_path)[place]
    with pytest.raises(OSError, match=r"a pipe or a device|Is a directory") as told:
        open_file(path)
    assert told.value.filename == str(path)
    assert told.value.errno in (errno.ENOTSUP, errno.EISDIR)


def test_a_file_is_opened_behind_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to("a")
    with open_file(tmp_path / "b") as stream:
        assert stream.read() == b"x"
