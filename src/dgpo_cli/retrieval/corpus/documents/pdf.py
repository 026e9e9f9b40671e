"""PDF files, by pypdf."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

from dgpo_cli.core.extras import require
from dgpo_cli.errors import first_line
from dgpo_cli.retrieval.corpus.documents.document import Document, Section, Unreadable, writable

_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_PDF_PAGES, _PDF_OPERATIONS, _PDF_BYTES = 10_000, 10_000_000, 1 << 26  # of a file, ours


def read_pdf(content: bytes) -> Document:
    require("pypdf", "pdf", "a PDF file")
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs every flaw that it repairs
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("PDF with a password")
        text = "\n".join(_HYPHENATED.sub("", page) for page in _pages(reader))
        title = str((reader.metadata and reader.metadata.title) or "")
    except Unreadable:
        raise
    except Exception as error:  # a malformed PDF raises pypdf's own errors and builtins of every kind
        raise Unreadable(f"broken PDF ({first_line(error)[:80]})") from error
    return Document(writable(title).strip(), [Section("", writable(text))])


def _pages(reader: Any) -> Iterator[str]:
    """The text of each page. Raises Unreadable beyond limits that no document meets: forms can call forms for ever."""
    operations = bytes_read = 0

    def count(*_: object) -> None:
        nonlocal operations
        operations += 1
        if operations > _PDF_OPERATIONS:
            raise Unreadable(f"oversized PDF (more than {_PDF_OPERATIONS:,} drawing operations)")

    for number, page in enumerate(reader.pages, start=1):
        contents = page.get_contents()
        bytes_read += 0 if contents is None else len(contents.get_data())
        if number > _PDF_PAGES or bytes_read > _PDF_BYTES:
            raise Unreadable(f"oversized PDF (more than {_PDF_PAGES:,} pages, or {_PDF_BYTES:,} bytes in them)")
        yield page.extract_text(visitor_operand_before=count)
