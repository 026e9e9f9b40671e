"""ZIP archives that documents come as: unpacked in memory within limits, so that a small file cannot fill it.

Sizes are counted as bytes come out, since an archive can say anything of itself.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable

from dgpo_cli.retrieval.corpus.documents.document import Unreadable, decoded

MOST_FILES = 20_000  # in an archive, ours; a book or a deck has hundreds
MOST_BYTES = 1 << 25  # of all texts in an archive, unpacked; a thousand pages take a third of it
_ENTRY = b"PK\x01\x02"  # begins each entry of an archive's directory, which the library reads whole
_WITH_A_PASSWORD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # an Office file with a password is one of Microsoft's old form
MOST_FIELDS = 100  # of a Word document inside each other, ours; Word allows twenty
_FIELD = re.compile(r"fldCharType\s*=\s*[\"']([^\"'<]{0,20})")
_STEP = 1 << 16  # bytes unpacked at once
_ENCODING = re.compile(rb"^<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.-]+)")


def unpacked(content: bytes, kind: str, wanted: Callable[[str], bool], most: int = MOST_BYTES) -> dict[str, bytes]:
    """Every file of an archive by its name; those that are not `wanted` are empty. Raises Unreadable."""
    if content.startswith(_WITH_A_PASSWORD):
        raise Unreadable(f"{kind} with a password, or of an older form")
    if content.count(_ENTRY) > MOST_FILES:
        raise Unreadable(f"oversized {kind} (more than {MOST_FILES:,} files in it)")
    found: dict[str, bytes] = {}
    left = most
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if not wanted(entry.filename):
                    found[entry.filename] = b""
                    continue
                if entry.flag_bits & 1:
                    raise Unreadable(f"{kind} with a password")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without limit
                    raise Unreadable(f"broken {kind} (an unknown compression)")
                parts = []
                with archive.open(entry) as stream:
                    while part := stream.read(_STEP):
                        left -= len(part)
                        if left < 0:
                            raise Unreadable(f"oversized {kind} (more than {most:,} bytes of text in it)")
                        parts.append(part)
                found[entry.filename] = b"".join(parts)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable(f"broken {kind} ({str(error)[:80]})") from error
    return found


def office_package(content: bytes, kind: str) -> io.BytesIO:
    """An Office file with nothing but its XML in it, all of which is as the format allows: for a library to read.

    Raises Unreadable, also for a document type: it could define entities that stand for gigabytes.
    """
    files = unpacked(content, kind, _is_xml)
    if "[Content_Types].xml" not in files:
        raise Unreadable(f"broken {kind} (it has no [Content_Types].xml)")
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as archive:
        for name, held in files.items():
            if _is_xml(name):
                _check_xml(held, kind, name)
            archive.writestr(name, held)
    package.seek(0)
    return package


def _is_xml(name: str) -> bool:
    return name.lower().endswith((".xml", ".rels"))


def _check_xml(content: bytes, kind: str, name: str) -> None:
    """The Open Packaging Conventions allow UTF-8 and UTF-16, and no document type."""
    if not content.strip():
        return
    declared = _ENCODING.search(content.removeprefix(b"\xef\xbb\xbf"))
    if declared and declared[1].lower() not in (b"utf-8", b"utf-16"):
        raise Unreadable(f"broken {kind} ({name} is neither UTF-8 nor UTF-16)")
    text = decoded(content)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Unreadable(f"broken {kind} ({name} defines a document type)")
    _check_fields(text, kind, name)


def _check_fields(text: str, kind: str, name: str) -> None:
    """A Word document's fields end: what comes in an open one costs the library a step for each that is open, and each
    part of a field is read together with those before it.
    """
    opened = parts = 0
    for found in _FIELD.finditer(text):
        if found[1] == "end":
            opened = max(0, opened - 1)
        elif found[1] == "separate":
            parts += 1
        else:
            opened, parts = opened + 1, 0
        if max(opened, parts) > MOST_FIELDS:
            raise Unreadable(f"broken {kind} ({name} has more than {MOST_FIELDS} fields inside each other)")
