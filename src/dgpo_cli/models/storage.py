"""Model folders on disk: written beside their place and renamed, so that a reader finds the old one or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A fresh folder to write into; it takes the place of `directory` if nothing was raised.

    Killed between the two renames, the old folder is left under its other name; `recover` puts it back.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    recover(directory)
    temporary, old = _beside(directory, "writing"), _beside(directory, "old")
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    if directory.exists():
        directory.rename(old)
    temporary.rename(directory)
    if old.exists():
        shutil.rmtree(old)


def recover(directory: Path) -> None:
    """Undo a replacement that was killed halfway. Does nothing otherwise."""
    old = _beside(directory, "old")
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def _beside(directory: Path, what: str) -> Path:
    return directory.with_name(f".{directory.name}.{what}")
