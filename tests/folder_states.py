"""States of a folder: taken while a command works in it, kept once by their content, and laid out again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PID = re.compile(r"\.\d+\.writing$")
_UNFINISHED = re.compile(r"(^|/)\.[^/]+\.writing(/|$)")
_VARYING = re.compile(rb"[0-9a-f]{16,}|[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_TRIES = 50


@dataclass(frozen=True)
class State:
    """What a folder holds: (kind, mode, digest of the content or aim of the link) by name, and times of change.

    Times are laid out with the rest; two states that differ in nothing else are one.
    """

    entries: dict[str, tuple[str, int, str]]
    times: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        return hashlib.blake2b(json.dumps(sorted(self.entries.items())).encode(), digest_size=16).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"entries": self.entries, "times": self.times}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        return cls({name: (kind, mode, what) for name, (kind, mode, what) in value["entries"].items()}, value["times"])


class Store:
    """Contents of files, each kept once, in a folder beside those that are looked at."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, folder: Path) -> State | None:
        """The state of a folder at one moment: None if it never held still while it was read."""
        for _ in range(_TRIES):
            before = _listing(folder)
            try:
                entries = {name: self._entry(folder / name, mode) for name, (mode, *_) in before.items()}
            except FileNotFoundError:
                continue
            if _listing(folder) == before:
                return State(entries, {name: changed for name, (*_, changed) in before.items()})
        return None

    def _entry(self, path: Path, mode: int) -> tuple[str, int, str]:
        if stat.S_ISDIR(mode):
            return "folder", stat.S_IMODE(mode), ""
        if stat.S_ISLNK(mode):
            return "link", 0, str(path.readlink())
        return "file", stat.S_IMODE(mode), self.keep(path.read_bytes())

    def keep(self, content: bytes) -> str:
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        place = self._folder / digest
        if not place.exists():
            unfinished = place.with_suffix(".writing")
            unfinished.write_bytes(content)
            unfinished.rename(place)
        return digest

    def content(self, digest: str) -> bytes:
        return (self._folder / digest).read_bytes()

    def lay_out(self, state: State, folder: Path) -> None:
        """Make `folder` hold this state and nothing else."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, (kind, mode, what) in sorted(state.entries.items()):
            path = folder / name
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(what)
            else:
                shutil.copyfile(self._folder / what, path)
            if kind != "link":
                path.chmod(mode)
        for name in sorted(state.entries, reverse=True):  # a folder after what is in it
            if changed := state.times.get(name):
                os.utime(folder / name, ns=(changed, changed), follow_symlinks=False)

    def alike(self, one: State, other: State) -> str:
        """What differs between states of two runs beside process numbers, clocks and digests over them, or ""."""
        first, second = self._named(one), self._named(other)
        if first.keys() != second.keys():
            return f"files differ: {sorted(first.keys() ^ second.keys())[:5]}"
        return next((name for name, entry in first.items() if not self._same(entry, second[name])), "")

    def _named(self, state: State) -> dict[str, tuple[str, int, str]]:
        return {_PID.sub(".PID.writing", name): entry for name, entry in state.entries.items()}

    def _same(self, one: tuple[str, int, str], other: tuple[str, int, str]) -> bool:
        if one == other:
            return True
        if one[:2] != other[:2] or one[0] != "file":
            return False
        masked = (_VARYING.sub(b"#", self.content(entry[2])) for entry in (one, other))
        return next(masked) == next(masked)


def half_written(
    store: Store, before: State, after: State, renamed_to: str | None, *, unfinished: bool = True
) -> list[tuple[str, State]]:
    """States between two: one file, written where it stays, holds half of what it gets. By the name of that file.

    What a rename puts in place is never half there. A file that is swept by its name is the same to a reader whatever
    it holds, and so is what lies in an unfinished folder, but where a command goes on with that (`unfinished`).
    """
    found = []
    for name, entry in after.entries.items():
        moved = renamed_to is not None and (name == renamed_to or name.startswith(f"{renamed_to}/"))
        had = before.entries.get(name)
        if entry[0] != "file" or entry == had or moved or _PID.search(name) or name.endswith(".lock"):
            continue
        if not unfinished and _UNFINISHED.search(name):
            continue
        old, new = store.content(had[2]) if had else b"", store.content(entry[2])
        kept = len(old) if new.startswith(old) else 0
        half = new[: kept + (len(new) - kept) // 2]
        if half not in (old, new):
            folders = {name: entry for name, entry in after.entries.items() if entry[0] == "folder"}
            entries = folders | before.entries | {name: ("file", entry[1], store.keep(half))}
            found.append((name, State(entries, before.times)))
    return found


def _listing(folder: Path, inside: str = "") -> dict[str, tuple[int, int, int, int]]:
    """(mode, inode, size, time of change) by name."""
    found: dict[str, tuple[int, int, int, int]] = {}
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            status = entry.stat(follow_symlinks=False)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[name] = (status.st_mode, status.st_ino, size, status.st_mtime_ns)
            if stat.S_ISDIR(status.st_mode):
                found |= _listing(folder, f"{name}/")
    return found
