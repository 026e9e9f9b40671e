"""A folder of the user's own files as a corpus: every file of a kind that `documents` reads, cut into passages.

Names that begin with a dot are passed over, and so is an index that lies in the folder. A file that has several names
there, by links, is read once. One file is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dgpo_cli.core.types import Passage
from dgpo_cli.core.untrusted import file_name
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.documents import READERS, Document, Unreadable, read_document
from dgpo_cli.retrieval.corpus.sources import Digest, Found
from dgpo_cli.retrieval.corpus.split import passages

LARGEST = 100_000_000  # bytes of a file
_INDEX_MARKS = {"manifest.json", "passages.jsonl", "offsets.npy"}


@dataclass(frozen=True, slots=True)
class Folder:
    """The digest is that of the files' names and contents. An id is the file's path and the passage's number in it."""

    root: Path

    def read(self, digest: Digest) -> Iterator[Found]:
        files = self._files()
        for done, path in enumerate(files, start=1):
            name, share = self._name(path), done / len(files)
            try:
                content = _content(path)
                _show(digest, name, content)
                document = read_document(content, path.suffix.lower())
            except Unreadable as problem:
                yield Found(name, share, problem=str(problem))
                continue
            except OSError as error:
                yield Found(name, share, problem=f"cannot be read ({error.strerror})")
                continue
            for number, (title, text) in enumerate(_titled(document, file_name(path.stem)), start=1):
                yield Found(name, share, Passage.from_title(f"{name}#{number}", title, text))

    def hash(self, digest: Digest) -> None:
        for path in self._files():
            try:
                content = _content(path)
            except (Unreadable, OSError):
                continue
            _show(digest, self._name(path), content)

    def _name(self, path: Path) -> str:
        """The path inside the folder."""
        return file_name(path.relative_to(self.root).as_posix())

    def _files(self) -> list[Path]:
        """In an order that does not depend on the file system."""
        found: list[Path] = []
        for folder, folders, names in os.walk(self.root, onerror=_refuse):
            if set(names) >= _INDEX_MARKS:
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        found.sort(key=lambda path: path.relative_to(self.root).parts)
        once = set(_once(sorted(found, key=Path.is_symlink)))  # links come last
        return [path for path in found if path in once]


def _once(paths: Iterable[Path]) -> Iterator[Path]:
    """Every file by its first name; what cannot be looked at is left to the reader, who says why."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        try:
            found = path.stat()
        except (OSError, ValueError):
            yield path
            continue
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield path


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}", hint="give a folder that you may read")


def _content(path: Path) -> bytes:
    """Raises Unreadable before it reads what could not be used."""
    if path.suffix.lower() not in READERS:
        raise Unreadable(f"unknown kind ({file_name(path.suffix) or 'no ending'})")
    if not path.is_file():  # a pipe or a device would never end; a dangling link has nothing
        raise Unreadable("not a file")
    if path.stat().st_size > LARGEST:
        raise Unreadable(f"too large ({path.stat().st_size / 1e6:,.0f} MB, {LARGEST / 1e6:,.0f} MB at most)")
    return path.read_bytes()


def _show(digest: Digest, name: str, content: bytes) -> None:
    digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())


def _titled(document: Document, stem: str) -> Iterator[tuple[str, str]]:
    """(title, text) of every passage: the file's title, and the heading above the passage where it says more."""
    name = document.title or stem
    for section in document.sections:
        heading = section.heading
        title = f"{name}: {heading}" if heading and heading != name else name
        for text in passages(section.text):
            yield " ".join(title.split()), text
