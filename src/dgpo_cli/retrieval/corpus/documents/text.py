"""Plain text and Markdown."""

from __future__ import annotations

import re

from dgpo_cli.retrieval.corpus.documents.document import Document, Section, decoded

_HEADING = re.compile(r" {0,3}#{1,6}(?=\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})\s*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def read_plain(content: bytes) -> Document:
    return Document("", [Section("", decoded(content))])


def read_markdown(content: bytes) -> Document:
    """Headings of both kinds, not inside fenced code; the title of the front matter, or else the first heading."""
    lines = decoded(content).splitlines()
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
