"""Lines of a file that another process writes, as they come: appended, cut back, or in a file that takes its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dgpo_cli.core.untrusted import open_file

_BEFORE = 64  # bytes before the place where reading goes on; another file has others there


class Line(NamedTuple):
    start: int  # byte of the file
    content: bytes  # without its end


class Tail:
    """Of a file of any size at most its last `most` bytes are read at once; what stands before them is passed over."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most = path, most
        self._file, self._at, self._before = 0, 0, b""  # inode, place, and the bytes that end there

    def read(self) -> tuple[bool, list[Line]]:
        """Whether this is another file or beginning than last time, and the whole lines that have come since.

        Raises OSError where the file is there and cannot be read.
        """
        try:
            stream = open_file(self.path)
        except FileNotFoundError:
            known, self._file, self._at, self._before = bool(self._file), 0, 0, b""
            return known, []
        with stream:
            state = os.fstat(stream.fileno())
            anew = state.st_ino != self._file or not self._goes_on(stream.fileno())
            start = 0 if anew else self._at
            whole = start + self._most >= state.st_size
            start = start if whole else state.st_size - self._most
            content = os.pread(stream.fileno(), self._most, start)
            if not whole:  # the first line of them has lost its beginning
                cut = content.find(b"\n") + 1
                start, content = start + cut, content[cut:]
            content = content[: content.rfind(b"\n") + 1]
            self._file, self._at = state.st_ino, start + len(content)
            self._before = os.pread(stream.fileno(), min(_BEFORE, self._at), self._at - min(_BEFORE, self._at))
        lines = []
        for line in content.split(b"\n")[:-1]:
            lines.append(Line(start, line))
            start += len(line) + 1
        return anew, lines

    def _goes_on(self, stream: int) -> bool:
        return os.pread(stream, len(self._before), self._at - len(self._before)) == self._before
