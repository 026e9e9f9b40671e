"""HTML as a browser shows it, without its styles and scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dgpo_cli.retrieval.corpus.documents.document import Document, Section, Unreadable, decoded

_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_OPEN_TITLE = re.compile("<title[^<]*", re.IGNORECASE)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_DEEPEST = 1_000  # elements inside each other, ours; pages have dozens
_STEP = 1 << 16  # characters
_UNSEEN = frozenset({"script", "style", "template", "svg", "noscript"})
# Everything else ends a sentence, as it begins a line of its own.
_INLINE = frozenset((
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
))  # fmt: skip


def read_html(content: bytes) -> Document:
    declared = _CHARSET.search(content[:2048])
    text = decoded(content, declared[1].decode("ascii") if declared else None)
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
