"""One writer at a time: a lock file in a folder that is written, or next to a place that is replaced as a whole.

The system releases the lock when its process ends, however it ends; a lock file left by a kill blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

from dgpo_cli.errors import BusyError, ConfigError

_GRACE_S = 0.2  # a lock is asked for again for as long, since its owner may be about to end
_LOOK_S = 10.0  # and for as long where `is_held` looks at it, for an instant on a machine that is not overloaded
_POLL_S = 0.02
_GONE = 100  # times in a row that a folder was made and is not there
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock:
    """Held from its making until `close` or the end of the process.

    `place` names what it protects, for messages. Raises BusyError, which names the process that has it, when it is not
    free within `wait_s` seconds.
    """

    def __init__(self, file: Path, place: Path, *, hint: str = "wait for it", wait_s: float = _GRACE_S) -> None:
        self._file = file
        self._made = [parent for parent in file.parents if parent != place and not parent.exists()]  # deepest first
        deadline = time.monotonic() + wait_s
        while (stream := _try(file)) is None:
            late = time.monotonic() - deadline
            if late >= _LOOK_S or (late >= 0 and is_held(file)):
                raise BusyError(f"another process (pid {_owner(file)}) works in {place}", hint=hint)
            time.sleep(_POLL_S)
        self._stream = stream
        with suppress(OSError):  # on a full disk, where what frees it needs the lock too
            stream.truncate(0)
            stream.write(str(os.getpid()).encode())

    @classmethod
    def inside(cls, folder: Path, hint: str = "wait for it, or give another folder") -> Lock:
        """Lock a folder that is written file by file; the folder is made if it does not exist."""
        return cls(lock_inside(folder), folder, hint=hint)

    @classmethod
    def beside(cls, path: Path, hint: str = "wait for it, or give another --out", *, wait_s: float = _GRACE_S) -> Lock:
        """Lock a file or folder that is replaced as a whole."""
        return cls(lock_beside(path), path, hint=hint, wait_s=wait_s)

    def close(self) -> None:
        """Release it. Whoever opened the file meanwhile sees that it is gone, and opens another.

        Folders that were made for the place to lie in go too if they are empty again: the work was refused.
        """
        if not self._stream.closed:
            if _is_at(self._stream, self._file):
                self._file.unlink(missing_ok=True)
            self._stream.close()
            with suppress(OSError):
                for folder in self._made:
                    if any(folder.iterdir()):
                        break
                    folder.rmdir()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_inside(folder: Path) -> Path:
    return folder / ".lock"


def lock_beside(path: Path) -> Path:
    place = Path(os.path.realpath(path))
    return place.parent / f".{place.name}.lock"


def is_held(file: Path) -> bool:
    """True if a process holds the lock of this file at this moment."""
    try:
        with open(file, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _try(file: Path) -> FileIO | None:
    """The file, locked; None if another process has it."""
    gone = 0
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = open(file, "a+b", buffering=0)  # noqa: SIM115 - open as long as the lock
        except FileNotFoundError:  # the folder went away meanwhile, or nothing can be made in it (/proc)
            gone += 1
            if gone > _GONE:
                raise
            continue
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        except OSError as error:
            stream.close()
            if error.errno not in _NO_LOCKS:
                raise
            raise ConfigError(
                f"{file.parent} is on a file system that cannot lock files ({error.strerror})",
                hint="write to another disk: two processes in one folder would destroy each other's work",
            ) from error
        if _is_at(stream, file):
            return stream
        stream.close()  # its owner removed it between our opening and locking


def _is_at(stream: FileIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _owner(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
