"""EPUB books: a ZIP file of XHTML pages and the order in which they are read."""

from __future__ import annotations

import posixpath
import urllib.parse
from typing import Any

from dgpo_cli.retrieval.corpus.documents.document import Document, Section, Unreadable
from dgpo_cli.retrieval.corpus.documents.html import read_html
from dgpo_cli.retrieval.corpus.documents.zipped import unpacked

_CONTAINER = "META-INF/container.xml"
_READ = (".xml", ".opf", ".xhtml", ".html", ".htm")


def read_epub(content: bytes) -> Document:
    """The pages of the spine in order, each once."""
    files = unpacked(content, "EPUB", lambda name: name.lower().endswith(_READ))
    rootfile = _xml(files, _CONTAINER).find(".//{*}rootfile")
    place = "" if rootfile is None else rootfile.get("full-path", "")
    package = _xml(files, place)
    pages = {item.get("id"): item.get("href", "") for item in package.iterfind("{*}manifest/{*}item")}
    spine = [pages.get(item.get("idref")) for item in package.iterfind("{*}spine/{*}itemref")]
    sections: list[Section] = []
    for href in dict.fromkeys(filter(None, spine)):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(place), urllib.parse.unquote(href)))
        if name not in files:
            raise Unreadable(f"broken EPUB (it has no {name[:60]})")
        if files[name].strip():
            sections += read_html(files[name]).sections
    title = package.findtext("{*}metadata/{*}title") or ""
    return Document(" ".join(title.split()) or next((s.heading for s in sections if s.heading), ""), sections)


def _xml(files: dict[str, bytes], name: str) -> Any:
    """The root of one of the files that say what a book is made of. No entity is replaced, no other file is opened."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(files.get(name, b""), parser)
    except (etree.LxmlError, ValueError) as error:
        raise Unreadable(f"broken EPUB ({name[:60] or 'no package file'}: {str(error)[:80]})") from error
