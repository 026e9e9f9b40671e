"""Lines typed in earlier chats, for the keys Up and Ctrl-R: a file that nobody but its owner reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from dgpo_cli.console import Console
from dgpo_cli.core.records import write_atomic
from dgpo_cli.core.untrusted import has_surrogates

_LARGEST = 1 << 20  # bytes; beyond it the older half goes
_ENTRY = b"\n# "  # how FileHistory begins one


def history_file() -> Path:
    """Where the XDG base directory specification puts what a program remembers of its use."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "dgpo" / "chat-history"


def kept_history(console: Console) -> History:
    """That of the file; one that lasts as long as this chat, with a warning, where the file cannot be used."""
    try:
        path = history_file()
        _prepare(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the home directory
        console.warn(f"what you type is not kept for the next chat: {error}")
        return InMemoryHistory()
    return _HistoryFile(path)


def _prepare(path: Path) -> None:
    """Make the file or its permissions private, and keep it small. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a file")
        os.fchmod(descriptor, 0o600)
        large = os.fstat(descriptor).st_size > _LARGEST
    finally:
        os.close(descriptor)
    if large:
        with open(path, "rb") as stream:
            stream.seek(-_LARGEST // 2, os.SEEK_END)
            recent = stream.read()
        write_atomic(path, recent[max(0, recent.find(_ENTRY)) :])
        path.chmod(0o600)


class _HistoryFile(FileHistory):
    def __init__(self, path: Path) -> None:
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        try:
            yield from super().load_history_strings()
        except OSError:  # gone since
            return

    def store_string(self, string: str) -> None:
        if has_surrogates(string):
            return
        try:
            super().store_string(string)
        except OSError:  # a full disk is no reason to end the chat
            return
