"""A folder of the user's own files as a corpus: every file of a kind that `documents` reads, cut into passages.

Names that begin with a dot are passed over, and so is an index that lies in the folder. A file that has several names
there, by links, is read once. One file is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dgpo_cli.core.types import Passage
from dgpo_cli.core.untrusted import file_name
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.documents import READERS, Document, Unreadable, read_document
from dgpo_cli.retrieval.corpus.known import KnownFile, KnownFiles, passage_id
from dgpo_cli.retrieval.corpus.sources import Digest, Found
from dgpo_cli.retrieval.corpus.split import passages

LARGEST = 100_000_000  # bytes of a file
_INDEX_MARKS = {"manifest.json", "passages.jsonl", "offsets.npy"}


@dataclass(frozen=True, slots=True)
class Folder:
    """The digest is that of the files' names and contents. An id is the file's path and the passage's number in it.

    A file that is among `known` and as it was then is not read again. What `read` finds is added to `files`.
    """

    root: Path
    known: KnownFiles | None = None
    files: list[KnownFile] = field(default_factory=list)

    def read(self, digest: Digest) -> Iterator[Found]:
        paths = self._paths()
        for done, path in enumerate(paths, start=1):
            name, share = self._name(path), done / len(paths)
            try:
                content = _content(path)
            except (Unreadable, OSError) as error:
                yield Found(name, share, problem=_problem(error))
                continue
            sha256 = _show(digest, name, content)
            found = self.known.of(name, sha256) if self.known is not None else None
            file, passages = found or _read(name, sha256, content, path)
            self.files.append(file)
            if file.problem:
                yield Found(name, share, problem=file.problem)
            for passage in passages:
                yield Found(name, share, passage)

    def hash(self, digest: Digest) -> None:
        for path in self._paths():
            try:
                content = _content(path)
            except (Unreadable, OSError):
                continue
            _show(digest, self._name(path), content)

    def readable(self) -> list[Path]:
        """The files of a known kind, in the order in which they are read; what is in them is not looked at."""
        return [path for path in self._paths() if path.suffix.lower() in READERS and path.is_file()]

    def _name(self, path: Path) -> str:
        """The path inside the folder."""
        return file_name(path.relative_to(self.root).as_posix())

    def _paths(self) -> list[Path]:
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


def _show(digest: Digest, name: str, content: bytes) -> str:
    """The SHA-256 of a content, which the digest depends on."""
    sha256 = hashlib.sha256(content).hexdigest()
    digest.update(f"{name}\0{sha256}\n".encode())
    return sha256


def _problem(error: Exception) -> str:
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _read(name: str, sha256: str, content: bytes, path: Path) -> tuple[KnownFile, list[Passage]]:
    try:
        document = read_document(content, path.suffix.lower())
    except Unreadable as problem:
        return KnownFile(name, sha256, 0, str(problem)), []
    titled = enumerate(_titled(document, file_name(path.stem)), start=1)
    passages = [Passage.from_title(passage_id(name, number), title, text) for number, (title, text) in titled]
    return KnownFile(name, sha256, len(passages), ""), passages


def _titled(document: Document, stem: str) -> Iterator[tuple[str, str]]:
    """(title, text) of every passage: the file's title, and the heading above the passage where it says more."""
    name = document.title or stem
    for section in document.sections:
        heading = section.heading
        title = f"{name}: {heading}" if heading and heading != name else name
        for text in passages(section.text):
            yield " ".join(title.split()), text
