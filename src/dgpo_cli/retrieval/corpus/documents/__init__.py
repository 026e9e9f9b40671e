"""A file of the user's own to a title and sections of text; each kind of file has a module here."""

from __future__ import annotations

from collections.abc import Callable

from dgpo_cli.retrieval.corpus.documents.document import Document, Section, Unreadable
from dgpo_cli.retrieval.corpus.documents.epub import read_epub
from dgpo_cli.retrieval.corpus.documents.html import read_html
from dgpo_cli.retrieval.corpus.documents.office import read_docx, read_pptx, read_xlsx
from dgpo_cli.retrieval.corpus.documents.pdf import read_pdf
from dgpo_cli.retrieval.corpus.documents.tables import read_comma_separated, read_json, read_tab_separated
from dgpo_cli.retrieval.corpus.documents.text import read_markdown, read_plain

__all__ = ["READERS", "Document", "Section", "Unreadable", "read_document"]

READERS: dict[str, Callable[[bytes], Document]] = {
    ".txt": read_plain,
    ".text": read_plain,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    ".epub": read_epub,
    ".csv": read_comma_separated,
    ".tsv": read_tab_separated,
    ".json": read_json,
}


def read_document(content: bytes, suffix: str) -> Document:
    """`suffix` is one of READERS. Raises Unreadable for a file without text or of another kind than it says."""
    if not content.strip():
        raise Unreadable("empty")
    document = READERS[suffix](content)
    if not any(section.text.strip() for section in document.sections):
        raise Unreadable("no text (a scan, perhaps)" if suffix == ".pdf" else "no text")
    return document
