"""Folders that appear and vanish as a whole: written next to their place and renamed, or renamed and then removed.

The name of a leftover of a kill says what it is: `.NAME.writing` was not complete, `.NAME.old` was being replaced,
`.NAME.removed` was being removed, and `.NAME.PID.writing` is a file of that kind. Whoever holds the lock of a place may
take such leftovers away (`settle`, `sweep`): their writers are gone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from dgpo_cli.core.locks import Lock
from dgpo_cli.errors import BusyError

_UNFINISHED = re.compile(r"\..+\.\d+\.writing")
_MOMENT_S = 2.0  # seconds; far more than a replacement takes between its two renames
_POLL_S = 0.02


def require_place(directory: Path) -> None:
    """Makes nothing. Raises OSError where no folder can be made, or nothing may be written in the one that is there."""
    place = _real(directory)
    for there in (place, *place.parents):
        try:
            there.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        break
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A fresh folder to write into; it takes the place of `directory` if nothing was raised."""
    directory = _real(directory)
    settle(directory)
    temporary = beside(directory, "writing")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        put_in_place(temporary, directory)
    except BaseException:
        _delete(temporary)
        raise


def put_in_place(written: Path, directory: Path) -> None:
    """Rename `directory` away and the other one into its place. A kill in between leaves what `recover` undoes."""
    directory = _real(directory)
    old = beside(directory, "old")
    if directory.exists():
        directory.rename(old)
    try:
        written.rename(directory)
    except OSError:
        recover(directory)
        raise
    _delete(old)


def remove(directory: Path) -> None:
    """Delete a folder, if it is there, so that a kill never leaves a part of it in its place."""
    directory = _real(directory)
    removed = beside(directory, "removed")
    _delete(removed)
    if directory.exists():
        directory.rename(removed)
        _delete(removed)


def settle(directory: Path) -> None:
    """Undo a replacement that was killed halfway, and delete what else kills left of `directory`."""
    recover(directory)
    for what in ("writing", "old", "removed"):
        _delete(beside(directory, what))


def recover(directory: Path) -> None:
    """Put back what a replacement that was killed between its renames left under another name."""
    directory = _real(directory)
    old = beside(directory, "old")
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def recover_to_read(directory: Path, lock: Path) -> None:
    """`recover` for a reader without `lock`, who may come between the two renames of the process that holds it."""
    deadline = time.monotonic() + _MOMENT_S
    while beside(directory, "old").is_dir() and not directory.exists() and time.monotonic() < deadline:
        try:
            with Lock(lock, directory):
                recover(directory)
        except BusyError:
            time.sleep(_POLL_S)


def sweep(folder: Path) -> None:
    """Delete the files in `folder`, not those further down, that killed writers left unfinished."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_unfinished(path):
            path.unlink(missing_ok=True)


@contextmanager
def sole_writer(file: Path) -> Iterator[None]:
    """Lock a file for this process alone and delete what killed writers of it left next to it. Raises BusyError."""
    file = _real(file)
    with Lock.beside(file):
        for path in file.parent.glob(f".{escape(file.name)}.*.writing"):
            if is_unfinished(path):
                path.unlink(missing_ok=True)
        yield


def is_unfinished(path: Path) -> bool:
    """True if the name is that of a file whose writer has not finished, or was killed."""
    return _UNFINISHED.fullmatch(path.name) is not None and path.is_file()


def beside(directory: Path, what: str) -> Path:
    place = _real(directory)
    return place.parent / f".{place.name}.{what}"


def _real(directory: Path) -> Path:
    """Where a link leads, so that the link stays and renames stay on one disk."""
    return Path(os.path.realpath(directory))


def _delete(directory: Path) -> None:
    if directory.is_dir():
        shutil.rmtree(directory)
