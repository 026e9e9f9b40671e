"""A file of the user's own to a title and sections of text: plain text, Markdown, HTML and PDF."""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dgpo_cli.core.extras import require

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_HEADING = re.compile(r" {0,3}#{1,6}(?=\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})\s*$")
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_OPEN_TITLE = re.compile("<title[^<]*", re.IGNORECASE)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_DEEPEST = 1_000  # elements inside each other, ours; pages have dozens
_STEP = 1 << 16  # characters
_PDF_PAGES, _PDF_OPERATIONS, _PDF_BYTES = 10_000, 10_000_000, 1 << 26  # of a file, ours
_UNSEEN = frozenset({"script", "style", "template", "svg", "noscript"})
# Everything else ends a sentence, as it begins a line of its own.
_INLINE = frozenset((
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
))  # fmt: skip


class Unreadable(Exception):
    """Why a file gives no text, as "kind (details)"."""


@dataclass(frozen=True, slots=True)
class Section:
    heading: str  # empty before the first heading
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    title: str  # empty where the file tells none
    sections: list[Section]


def read_document(content: bytes, suffix: str) -> Document:
    """`suffix` is one of READERS. Raises Unreadable for a file without text or of another kind than it says."""
    if not content.strip():
        raise Unreadable("empty")
    document = READERS[suffix](content)
    if not any(section.text.strip() for section in document.sections):
        raise Unreadable("no text (a scan, perhaps)" if suffix == ".pdf" else "no text")
    return document


def _plain(content: bytes) -> Document:
    return Document("", [Section("", _decoded(content))])


def _markdown(content: bytes) -> Document:
    """Headings of both kinds, not inside fenced code; the title of the front matter, or else the first heading."""
    lines = _decoded(content).splitlines()
    title, lines = _front_matter(lines)
    sections, heading, body, fenced = [], "", list[str](), False
    for line in lines:
        fenced ^= bool(_FENCE.match(line))
        found = None if fenced else _HEADING.match(line)
        underlined = not fenced and _UNDERLINE.match(line) and body and body[-1].strip()
        if found is None and not underlined:
            body.append(line)
            continue
        name = line[found.end() :].strip().rstrip("#").strip() if found else body.pop().strip()
        sections.append(Section(heading, "\n".join(body)))
        heading, body = name, []
    sections.append(Section(heading, "\n".join(body)))
    return Document(title or next((s.heading for s in sections if s.heading), ""), sections)


def _front_matter(lines: list[str]) -> tuple[str, list[str]]:
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return "", lines
    end = next(place for place, line in enumerate(lines[1:], start=1) if line.strip() == "---")
    titles = (line.partition(":")[2].strip().strip("\"'") for line in lines[1:end] if line.lower().startswith("title:"))
    return next(titles, ""), lines[end + 1 :]


def _html(content: bytes) -> Document:
    declared = _CHARSET.search(content[:2048])
    text = _decoded(content, declared[1].decode("ascii") if declared else None)
    if "</title" not in text.lower():  # one that nobody closed would hide the page
        text = _OPEN_TITLE.sub("", text)
    from lxml import etree

    page = _Page()
    parser = etree.HTMLParser(target=page, huge_tree=True, no_network=True)
    try:
        for start in range(0, len(text), _STEP):  # a page that is given up is not read to its end
            parser.feed(text[start : start + _STEP])
        parser.close()
    except etree.LxmlError as error:
        raise Unreadable(f"no text (HTML: {error})") from error
    return page.document()


@dataclass(slots=True)
class _Text:
    heading: str = ""
    parts: list[str] = field(default_factory=list)


class _Page:
    """What a browser would show as text, of a parser's events; a new section at each of h1 to h6."""

    def __init__(self) -> None:
        self._sections = [_Text()]
        self._title: list[str] = []
        self._heading: list[str] | None = None
        self._unseen: list[str] = []  # open elements whose content is not shown
        self._in_title = False
        self._depth = 0

    def start(self, tag: str, _attributes: object) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:  # an end tag without a beginning costs the parser a step per open element
            raise Unreadable(f"nested too deeply (more than {_DEEPEST:,} elements)")
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag == "title" and not self._unseen:
            self._in_title = True
        elif tag in _HEADINGS:
            self._heading = []
        elif tag not in _INLINE:
            self._break()

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS:
            self._end_heading()
        elif tag not in _INLINE:
            self._break()

    def data(self, data: str) -> None:
        if self._unseen:
            return
        if self._in_title:
            self._title.append(data)
        elif self._heading is not None:
            self._heading.append(data)
        else:
            self._sections[-1].parts.append(data.replace("\n", " "))

    def comment(self, text: str) -> None:
        """Not shown."""

    def close(self) -> None:
        """What lxml asks of a target."""

    def document(self) -> Document:
        self._end_heading()
        title = " ".join("".join(self._title).split())
        sections = [Section(text.heading, "".join(text.parts)) for text in self._sections]
        return Document(title or next((s.heading for s in sections if s.heading), ""), sections)

    def _break(self) -> None:
        self._in_title = False  # a title that nobody closed ends where the page begins
        if self._heading is None:
            self._sections[-1].parts.append("\n\n")
        else:
            self._heading.append(" ")

    def _end_heading(self) -> None:
        if self._heading is not None and (heading := " ".join("".join(self._heading).split())):
            self._sections.append(_Text(heading))
        self._heading = None


def _pdf(content: bytes) -> Document:
    require("pypdf", "pdf", "a PDF file")
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every flaw that it gets over
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("PDF with a password")
        text = "\n".join(_HYPHENATED.sub("", page) for page in _pages(reader))
        title = str((reader.metadata and reader.metadata.title) or "")
    except Unreadable:
        raise
    except Exception as error:  # a malformed PDF raises pypdf's own errors and builtins of every kind
        raise Unreadable(f"broken PDF ({next(iter(str(error).splitlines()), repr(error))[:80]})") from error
    return Document(_writable(title).strip(), [Section("", _writable(text))])


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


def _decoded(content: bytes, declared: str | None = None) -> str:
    """Text by its byte order mark, by what the file declares, or as UTF-8. Raises Unreadable."""
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if marked in (None, "utf-8-sig") and b"\0" in content:
        raise Unreadable("binary")
    # A page in bytes that says it is UTF-16 is not: the saying could not have been read.
    encoding = marked or (declared if declared and not declared.lower().startswith("utf-16") else "utf-8")
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise Unreadable(f"not {encoding} (convert it to UTF-8)") from error
    if not text.strip():
        raise Unreadable("empty")
    return _writable(text)


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, which broken fonts and odd encodings give and UTF-8 cannot hold."""
    return text.encode("utf-8", "ignore").decode()


READERS: dict[str, Callable[[bytes], Document]] = {
    ".txt": _plain,
    ".text": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".pdf": _pdf,
}
