"""Faults of the machine, told apart from those of a file that was being read when they came.

A missing permission, too many open files or a lack of memory says nothing against a model, an index or a state: whoever
is told that it is damaged builds it again, or deletes it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from dgpo_cli.core.disk import system_error
from dgpo_cli.core.out_of_memory import is_out_of_memory

_OF_THE_MACHINE = frozenset((
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    errno.EIO, errno.ESTALE,
))  # fmt: skip


def pass_on(error: BaseException) -> None:
    """Raises the fault of the machine behind an error, as OSError or MemoryError; returns where there is none."""
    for cause in causes_of(error):
        if not isinstance(cause, Exception):
            continue
        if is_out_of_memory(cause):
            raise MemoryError from error
        found = system_error(cause)
        if found is not None and found.errno in _OF_THE_MACHINE:
            raise found from error


def require_openable(folder: Path) -> None:
    """Raises OSError where weights may not be opened: safetensors says of such a file that it is not there."""
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb"):
            pass


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from, or while they were handled, as libraries do to theirs."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
