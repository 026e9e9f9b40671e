"""Office files, books, tables and JSON of the user's own: what is read of them, and their limits."""

from __future__ import annotations

import datetime
import io
import zipfile
from typing import Any

import pytest
from tests.documents import docx_files, epub_files, paragraph, rewritten, xlsx, zipped

from dgpo_cli.errors import ConfigError
from dgpo_cli.retrieval.corpus.documents import READERS, Document, Unreadable, document, read_document
from dgpo_cli.retrieval.corpus.documents import zipped as archives

TOWNS = [["Towns of the Lun"], [], ["Town", "People", "Founded"], ["Vesapo", 300, datetime.datetime(1900, 5, 1)],
         ["Tarn", None, 2.5]]  # fmt: skip


def shown(found: Document) -> list[tuple[str, str]]:
    sections = [(section.heading, " ".join(section.text.split())) for section in found.sections]
    return [(heading, text) for heading, text in sections if text]


def problem(content: bytes, suffix: str) -> str:
    with pytest.raises(Unreadable) as refused:
        read_document(content, suffix)
    return str(refused.value)


def test_word_headings_tables_notes_and_tracked_changes() -> None:
    note = '<w:footnote w:id="2"><w:p><w:r><w:t>Measured in May.</w:t></w:r></w:p></w:footnote>'
    body = (
        paragraph("Rivers", "Titel")
        + paragraph("Before.")
        + paragraph("The Lun", "berschrift1")
        + '<w:p><w:r><w:t>It rises in </w:t></w:r><w:ins w:id="1"><w:r><w:t>Vesapo</w:t></w:r></w:ins>'
        + '<w:del w:id="2"><w:r><w:delText>Tarn</w:delText></w:r></w:del><w:r><w:t>.</w:t></w:r>'
        + '<w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
        + f"<w:sdt><w:sdtContent>{paragraph('In a form.')}</w:sdtContent></w:sdt>"
        + f"<w:tbl><w:tr><w:tc>{paragraph('Tarn')}</w:tc><w:tc>{paragraph('40 people')}</w:tc></w:tr></w:tbl>"
    )
    found = read_document(zipped(docx_files(body, note)), ".docx")
    assert found.title == "Rivers"
    assert shown(found) == [
        ("Rivers", "Before."),
        ("The Lun", "It rises in Vesapo.[1] In a form. Tarn 40 people Measured in May. ↑"),
    ]


def test_slides_with_tables_groups_and_notes() -> None:
    from PIL import Image
    from pptx import Presentation

    deck: Any = Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text = "The river", "It rises in Vesapo.\nIt is long."
    first.notes_slide.notes_text_frame.text = "Tell of Tarn."
    second = deck.slides.add_slide(deck.slide_layouts[6])
    cells = second.shapes.add_table(2, 2, 0, 0, 9, 9).table
    for row, texts in enumerate((("Town", "People"), ("Tarn", "40"))):
        cells.cell(row, 0).text, cells.cell(row, 1).text = texts
    second.shapes.add_group_shape().shapes.add_textbox(0, 0, 1, 1).text_frame.text = "In a group."
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    second.shapes.add_picture(picture, 0, 0)
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "Thank you"
    saved = io.BytesIO()
    deck.save(saved)
    found = read_document(saved.getvalue(), ".pptx")
    assert found.title == "The river"
    assert shown(found) == [
        ("The river", "It rises in Vesapo. It is long. Tell of Tarn."),
        ("slide 2", "Town: Tarn; People: 40 In a group."),
        ("Thank you", "Thank you"),
    ]


def test_sheets_by_the_names_of_their_columns() -> None:
    found = read_document(xlsx({"Lun": TOWNS, "Empty": [], "Bare": [[1, 2], [3, True]]}), ".xlsx")
    assert (found.title, shown(found)) == (
        "",
        [
            ("Lun", "Towns of the Lun Town: Vesapo; People: 300; Founded: 1900-05-01 Town: Tarn; Founded: 2.5"),
            ("Bare", "1; 2 3; True"),
        ],
    )


def test_comma_and_tab_separated_tables() -> None:
    assert shown(read_document(b'Town,People\nVesapo,300\n"Tarn, upper"\n', ".csv")) == [
        ("", "Town: Vesapo; People: 300 Town: Tarn, upper")
    ]
    assert shown(read_document(b"Town;People\nTarn;4,5\n", ".csv")) == [("", "Town: Tarn; People: 4,5")]
    assert shown(read_document(b"Town\tPeople\nTarn\t40\n", ".tsv")) == [("", "Town: Tarn; People: 40")]
    assert problem(b"a,b\n" + b"x" * 200_000 + b",1\n", ".csv").startswith("broken table (line 2: field larger")


def test_json_with_the_names_that_lead_to_a_value() -> None:
    rows = (
        '[{"title": "Vesapo", "at": {"river": "Lun", "km": [3, 4]}, "none": null}, {"name": "Tarn", "x": [{"y": 1}]}]'
    )
    assert shown(read_document(rows.encode(), ".json")) == [
        ("Vesapo", "title: Vesapo at river: Lun at km: 3, 4"),
        ("Tarn", "name: Tarn x y: 1"),
    ]
    one = read_document(b'\xef\xbb\xbf{"name": "Vesapo", "people": 300}', ".json")
    assert (one.title, shown(one)) == ("Vesapo", [("Vesapo", "name: Vesapo people: 300")])
    assert problem(b"{", ".json").startswith("broken JSON (not JSON (Expecting")
    assert problem(b"[" * 100_000, ".json").startswith("broken JSON")
    assert problem(b"[{}, null]", ".json") == "no text"


def test_the_pages_of_a_book_in_the_order_of_reading() -> None:
    pages = {
        "two%20words.xhtml": '<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><head>'
        '<title/><script src="x.js"/></head><body><h1>One</h1><p>Vesapo lies high.</p></body></html>',
        "cover.xhtml": "",
        "a.xhtml": "<h1>Two</h1><p>Tarn lies low.</p>",
    }
    files = epub_files(pages, "On  rivers")
    files["OEBPS/two words.xhtml"] = files.pop("OEBPS/two%20words.xhtml")
    found = read_document(zipped(files), ".epub")
    assert (found.title, shown(found)) == ("On rivers", [("One", "Vesapo lies high."), ("Two", "Tarn lies low.")])


def test_books_that_are_broken() -> None:
    files = epub_files({"a.xhtml": "<p>x"})
    assert problem(zipped(files | {"OEBPS/book.opf": "<p"}), ".epub").startswith("broken EPUB (OEBPS/book.opf: ")
    assert problem(zipped({"a": "b"}), ".epub").startswith("broken EPUB (META-INF/container.xml: ")
    del files["OEBPS/a.xhtml"]
    assert problem(zipped(files), ".epub") == "broken EPUB (it has no OEBPS/a.xhtml)"
    assert problem(zipped(epub_files({})), ".epub") == "no text"


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_archives_that_are_none(suffix: str) -> None:
    kind = suffix[1:].upper()
    assert problem(b"PK\3\4 not an archive", suffix).startswith(f"broken {kind} (")
    assert problem(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), suffix).startswith(f"{kind} with a password")
    assert problem(zipped({"a.xml": "b"}), suffix).startswith(f"broken {kind} (")
    assert problem(zipped(docx_files("<w:p>"), zipfile.ZIP_BZIP2), suffix).startswith(f"broken {kind} (an unknown")
    cut = zipped(docx_files(paragraph("x" * 999)))
    assert problem(cut[:200] + cut[260:], suffix).startswith(f"broken {kind} (")
    if suffix != ".epub":
        other = ".xlsx" if suffix != ".xlsx" else ".docx"
        assert problem(zipped(docx_files("<w:p>")) if other == ".docx" else xlsx({"a": TOWNS}), suffix)


ENTITY = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp500"])
def test_no_document_type_reaches_a_library(encoding: str) -> None:
    files = docx_files(paragraph("x"))
    content = f'<?xml version="1.0" encoding="{encoding}"?>{ENTITY}{files["word/document.xml"]}'.encode(encoding)
    assert problem(zipped(files | {"word/document.xml": content}), ".docx") in (
        "broken DOCX (word/document.xml defines a document type)",
        "not utf-8 (convert it to UTF-8)",
    )


def test_entities_of_a_book_stand_for_nothing() -> None:
    files = epub_files({"a.xhtml": "<p>text"}, "&b;")
    files["OEBPS/book.opf"] = ENTITY + str(files["OEBPS/book.opf"])
    assert read_document(zipped(files), ".epub").title == ""


def test_what_an_archive_says_of_its_sizes_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 1 << 25)
    honest = zipped({"a.xml": bytes(1 << 22)})
    lying = honest.replace((1 << 22).to_bytes(4, "little"), (99).to_bytes(4, "little"))
    assert honest != lying
    assert problem(lying, ".epub").startswith("broken EPUB (Bad CRC-32")
    with pytest.raises(Unreadable, match=r"oversized EPUB \(more than 1,000 bytes of text in it\)"):
        archives.unpacked(honest, "EPUB", lambda name: True, 1_000)
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    assert problem(zipped(dict.fromkeys("abc", b"")), ".epub") == "oversized EPUB (more than 2 files in it)"


def test_one_long_text_is_not_given_a_million_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MOST_CHARACTERS", 1_000)
    too_much = "oversized text (more than 1,000 characters)"
    book = xlsx({"a": [["x" * 90]] * 20})
    assert problem(book, ".xlsx") == too_much
    assert problem(xlsx({name: [["x" * 90]] * 2 for name in "abcdefgh"}), ".xlsx") == too_much
    assert problem(b'{"' + b"n" * 90 + b'": [' + b"[1]," * 20 + b"2]}", ".json") == too_much
    notes = f'<w:footnote w:id="2">{paragraph("long")}</w:footnote>'
    twice = '<w:p><w:r><w:footnoteReference w:id="2"/></w:r></w:p>' * 2
    assert problem(zipped(docx_files(twice, notes)), ".docx") == "broken DOCX (a note with 2 references)"


def test_addresses_and_names_of_styles_are_not_given_a_million_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MOST_CHARACTERS", 1_000)
    too_much = "oversized text (more than 1,000 characters)"
    made = zipped(docx_files(paragraph("x", "Titel") * 20 + paragraph("y")))
    assert read_document(made, ".docx").sections
    named = rewritten(made, "word/styles.xml", lambda text: text.replace('w:val="Title"', f'w:val="{"n" * 90}"'))
    assert problem(named, ".docx") == too_much
    link = f'<w:p><w:hyperlink w:anchor="{"n" * 90}"><w:r><w:t>x</w:t></w:r></w:hyperlink></w:p>'
    assert problem(zipped(docx_files(link * 20)), ".docx") == too_much
    noted = f'<w:footnote w:id="2">{link * 20}</w:footnote>'
    once = '<w:p><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    assert problem(zipped(docx_files(once, noted)), ".docx") == too_much


def field(*kinds: str) -> str:
    return "".join(f'<w:r><w:fldChar w:fldCharType="{kind}"/><w:instrText>PAGE</w:instrText></w:r>' for kind in kinds)


def test_fields_of_a_document_end() -> None:
    whole = f"<w:p>{field('begin', 'separate', 'end') * 500}</w:p>{paragraph('town')}"
    assert [section.text.strip() for section in read_document(zipped(docx_files(whole)), ".docx").sections] == ["town"]
    for kinds in (["begin"] * 101, ["&#98;egin"] * 101, ["begin"] + ["separate"] * 101):
        told = problem(zipped(docx_files(f"<w:p>{field(*kinds)}</w:p>")), ".docx")
        assert told == "broken DOCX (word/document.xml has more than 100 fields inside each other)"


def test_a_sheet_is_as_wide_as_its_last_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo_cli.retrieval.corpus.documents.office.MOST_CELLS", 20_000)
    wide = rewritten(
        xlsx({"a": [["one", "two"], [1, 2]]}), "xl/worksheets/sheet1.xml", lambda text: text.replace('"B', '"XFD')
    )
    assert problem(wide, ".xlsx") == "oversized XLSX (more than 20,000 cells)"


def test_files_that_are_nested_too_deeply() -> None:
    deep = "<w:sdt><w:sdtContent>" * 3_000 + paragraph("x") + "</w:sdtContent></w:sdt>" * 3_000
    assert problem(zipped(docx_files(deep)), ".docx").startswith("broken DOCX")


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx"])
def test_a_library_that_is_missing_is_named(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo_cli.core.extras.is_installed", lambda name: False)
    with pytest.raises(ConfigError, match=f"a {suffix[1:].upper()} file needs .* which is not installed") as refused:
        READERS[suffix](b"PK")
    assert refused.value.hint is not None and "'.[office]'" in refused.value.hint
