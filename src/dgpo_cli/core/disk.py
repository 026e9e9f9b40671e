"""Room on a disk: checked before long work, reserved before a file is mapped, and named in the error if it runs out.

Writing to a mapped file on a full disk kills the process, so its room is taken before.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from dgpo_cli.errors import ConfigError

_BLOCK = 1 << 20
_NUMBERED = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # libraries in Rust; Arrow
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy, which does not ask why
_OF_PATHS = (  # what pathlib raises as RuntimeError and open as ValueError, by the beginning of the message
    ("Symlink loop from ", errno.ELOOP, os.strerror(errno.ELOOP)),
    ("Could not determine home directory", errno.ENOENT, "No such user, or no home folder"),
    ("embedded null ", errno.ENOENT, "No path holds a NUL character"),
)
_NO_SUCH_CALL = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # on this file system


def check_space(path: Path, needed_bytes: int) -> None:
    """Raises ConfigError if the disk of `path` has less than `needed_bytes` free."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise ConfigError(
            f"{path} needs {_gigabytes(needed_bytes)} GB of disk, {_gigabytes(free)} GB are free",
            hint="free some space (`dgpo runs --prune`), or give --out on another disk",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.6f}".rstrip("0").rstrip(".")


def reserve(stream: BinaryIO, size: int) -> None:
    """Make an open file `size` bytes long, zeros behind what it holds, for which there is room. Raises OSError."""
    stream.flush()
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:
                raise
        else:
            return
    end = stream.seek(0, os.SEEK_END)
    while end < size:
        end += stream.write(bytes(min(_BLOCK, size - end)))
    stream.flush()


def system_error(error: Exception) -> OSError | None:
    """The system's error behind an exception, also of libraries that state it in the message only; else None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = str(error)
    for beginning, number, what in _OF_PATHS:
        if text.startswith(beginning):
            return OSError(number, what, text.removeprefix(beginning).strip(" '.") or "~")
    if found := _NUMBERED.search(text):
        number = int(found[1] or found[2])
    elif _SHORT_WRITE.search(text) or os.strerror(errno.ENOSPC) in text:
        number = errno.ENOSPC
    else:
        return None
    return OSError(number, os.strerror(number))
