"""Word, PowerPoint and Excel files, by mammoth, python-pptx and openpyxl.

Pictures, charts and what a macro or a formula would compute are not read; a cell has the value that was saved with it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from dgpo_cli.core.extras import require
from dgpo_cli.errors import first_line
from dgpo_cli.retrieval.corpus.documents.document import Budget, Document, Section, Unreadable
from dgpo_cli.retrieval.corpus.documents.html import read_html
from dgpo_cli.retrieval.corpus.documents.tables import MOST_CELLS, table
from dgpo_cli.retrieval.corpus.documents.zipped import office_package

_TITLE_STYLE = "p[style-name='Title'] => h1:fresh"


def read_docx(content: bytes) -> Document:
    return _by_library(content, "mammoth", "DOCX", _word)


def read_pptx(content: bytes) -> Document:
    return _by_library(content, "pptx", "PPTX", _powerpoint)


def read_xlsx(content: bytes) -> Document:
    return _by_library(content, "openpyxl", "XLSX", _excel)


def _by_library(content: bytes, module: str, kind: str, read: Callable[[io.BytesIO], Document]) -> Document:
    require(module, "office", f"a {kind} file")
    package = office_package(content, kind)
    try:
        return read(package)
    except Unreadable:
        raise
    except Exception as error:  # a malformed file raises the libraries' own errors and builtins of every kind
        raise Unreadable(f"broken {kind} ({first_line(error)[:80]})") from error


def _word(package: io.BytesIO) -> Document:
    """By way of HTML, which mammoth makes of styles, lists, tables, notes and tracked changes."""
    import mammoth
    from mammoth.documents import NoteReference
    from mammoth.transforms import get_descendants

    def once(document: Any) -> Any:
        """A note, an address or the name of a style is written wherever something refers to it, so a large one could be
        written a million times.
        """
        found, budget = get_descendants(document), Budget()
        references = [one for one in found if isinstance(one, NoteReference)]
        many = Counter((one.note_type, one.note_id) for one in references).most_common(1)
        if many and many[0][1] > 1:
            raise Unreadable(f"broken DOCX (a note with {many[0][1]:,} references)")
        for body in (document.notes.resolve(reference).body for reference in references):
            found += [one for top in body for one in (top, *get_descendants(top))]
        for one in found:
            for name in ("href", "anchor", "target_frame", "style_name"):
                budget.spend(getattr(one, name, None) or "")
        return document

    made = mammoth.convert_to_html(
        package, style_map=_TITLE_STYLE, convert_image=lambda _: [], transform_document=once, id_prefix=""
    )
    return read_html(made.value.encode())


def _powerpoint(package: io.BytesIO) -> Document:
    """A section for each slide: its title, what stands on it in the order of its file, and the speaker's notes."""
    from pptx import Presentation

    sections, budget = [], Budget()
    for number, slide in enumerate(Presentation(package).slides, start=1):
        titled = slide.shapes.title
        heading = " ".join(titled.text_frame.text.split()) if titled is not None else ""
        texts = [text for shape in slide.shapes if shape != titled for text in _shape_texts(shape, budget)]
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
            texts.append(notes.text)
        text = "\n\n".join(text for text in texts if text.strip())
        sections.append(Section(heading or f"slide {number}", budget.spend(text or heading)))  # or nothing but a title
    return Document(next((s.heading for s in sections if s.heading), ""), sections)


def _shape_texts(shape: Any, budget: Budget) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape_texts(inner, budget)
    elif shape.has_text_frame:
        yield shape.text_frame.text.replace("\v", "\n")
    elif getattr(shape, "has_table", False):
        # Asked for a row by its number, the library counts to it from the first one.
        rows = groupby(shape.table.iter_cells(), key=lambda cell: cell._tc.getparent())
        yield table(([cell.text_frame.text for cell in cells] for _, cells in rows), budget)


def _excel(package: io.BytesIO) -> Document:
    """A section for each sheet, a line for each row."""
    from openpyxl import load_workbook

    cells, budget = 0, Budget()

    def rows(sheet: Any) -> Iterator[tuple[object, ...]]:
        nonlocal cells
        sheet.reset_dimensions()  # what a sheet says of its size is not to be relied on
        for row in sheet.iter_rows(values_only=True):
            cells += 1 + len(row)
            if cells > MOST_CELLS:
                raise Unreadable(f"oversized XLSX (more than {MOST_CELLS:,} cells)")
            yield row

    book = load_workbook(package, read_only=True, data_only=True, keep_links=False)
    return Document("", [Section(sheet.title, table(rows(sheet), budget)) for sheet in book.worksheets])
