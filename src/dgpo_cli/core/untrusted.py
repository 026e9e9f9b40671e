"""Text from outside: bytes to text and JSON, the limits of both, and the form in which a terminal may show it.

Text is from outside if this process did not make it: standard input, names of files, corpora, question
files, servers' replies, records of earlier runs, text that a model wrote.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dgpo_cli.core.text import composed
from dgpo_cli.errors import DgpoError, InputError

LONGEST_LINE = 1 << 24  # bytes of a line of JSON; the longest episodes take a tenth of it
LONGEST_PASSAGE = 100_000  # characters; far more than an agent reads, and mostly a sign of a broken line
LONGEST_QUESTION = 100_000  # characters
LARGEST_RECORD = 1 << 26  # bytes of a file that is one JSON value
LARGEST_TABLE = 1 << 29  # bytes of a question file that is read whole, after decompression
DEEPEST = 64  # lists and objects inside each other; no record of ours has more than a dozen

# The controls but tab and line feed, the marks that turn the direction of writing, line separators, the byte order
# mark, invisible tags, and halves of surrogate pairs: what a terminal obeys or hides instead of showing it.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff]"
)
_MARKS = re.compile(rb"(?:\xef\xbb\xbf)++")
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """Text that a terminal shows as it stands: each character that would steer the terminal becomes U+FFFD."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """The same JSON with such characters as escapes: its value is unchanged."""
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def has_surrogates(text: str) -> bool:
    """True if it holds half of a surrogate pair, which JSON and file names allow and no encoding can write."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def file_name(name: str) -> str:
    """A file's name as text; bytes of it that are not UTF-8 are written as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unmarked(content: bytes) -> bytes:
    """Without byte order marks in front; files that were put together leave several."""
    marks = _MARKS.match(content)
    return content[marks.end() :] if marks else content


def decoded(content: bytes, place: str) -> str:
    """UTF-8 with or without a byte order mark. Raises InputError that names the place."""
    try:
        text = unmarked(content).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at {error.start}: {error.reason}"
        raise InputError(f"{place}: not UTF-8 ({byte})", hint="convert it to UTF-8") from error
    if "\0" in text:
        raise InputError(f"{place}: holds a NUL character, so it is no text", hint="give text in UTF-8")
    return text


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, to be read. Raises OSError for anything else: a pipe or a device may have no end, and could not
    be read a second time, which its digest asks for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe waits for its writer
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ENOTSUP, "a pipe or a device, not a file", str(path))


def read_text(path: Path, error: type[DgpoError] = InputError) -> str:
    """A whole text file. Raises `error` that names it."""
    try:
        return decoded(read_bytes(path, LARGEST_RECORD), str(path))
    except InputError as problem:
        raise error(problem.message, hint=problem.hint) from problem


def lines(
    stream: BinaryIO, longest: int = LONGEST_LINE, seen: Callable[[bytes], object] | None = None
) -> Iterator[bytes | None]:
    """Lines with their ends, None for one of more than `longest` bytes, which is never held whole.

    `seen` gets every byte, those of overlong lines too.
    """
    while piece := stream.readline(longest + 1):
        if seen is not None:
            seen(piece)
        if len(piece) <= longest:
            yield piece
            continue
        while not piece.endswith(b"\n") and (piece := stream.readline(longest + 1)):
            if seen is not None:
                seen(piece)
        yield None


def overlong(longest: int = LONGEST_LINE) -> str:
    return f"oversized line (more than {longest:,} bytes)"


def questions_in(stream: BinaryIO) -> Iterator[tuple[int, str | InputError]]:
    """(line number, question) of every line that is not blank, in form NFC; an InputError where it is no text."""
    limit = 4 * LONGEST_QUESTION
    for number, line in enumerate(lines(stream, limit), start=1):
        place = f"line {number} of the input"
        if line is None:
            yield number, InputError(f"{place}: {overlong(limit)}", hint="give one question a line")
            continue
        try:
            text = composed(decoded(line, place)).strip()
        except InputError as error:
            yield number, error
            continue
        if text:
            yield number, text


def parse_json(content: bytes | str, place: str, hint: str = "give the file that was written") -> Any:
    """Any JSON value. Raises InputError that names the place: no UTF-8, no JSON, too deep, or text that no file holds.

    NaN and the infinities are read, as Python writes them: where they may not stand, a schema says so.
    """
    try:
        text = content if isinstance(content, str) else unmarked(content).decode("utf-8")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # an escaped half of a surrogate pair is legal JSON and no text
            json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InputError(f"{place}: not UTF-8 ({error.reason})", hint="convert the file to UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{place}: not JSON of ours ({_TOO_DEEP})", hint=hint) from error
    except ValueError as error:  # also a number of thousands of digits
        raise InputError(f"{place}: not JSON ({error})", hint=hint) from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise InputError(f"{place}: not JSON of ours ({_TOO_DEEP})", hint=hint)
    return value


_TOO_DEEP = f"more than {DEEPEST} lists or objects inside each other"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_head(path: Path, most: int) -> bytes:
    """The first bytes of a file. Raises OSError."""
    with open_file(path) as stream:
        return stream.read(most)


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file. Raises InputError where it cannot be read or has more than `most` bytes."""
    try:
        with open_file(path) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="give a file that you may read") from error
    if len(content) > most:
        raise InputError(f"{path}: more than {most:,} bytes", hint="give the file that was written")
    return content
