"""Files of the user's own: what is read, what is skipped and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.documents import PAGE, pdf

from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.documents import Document, Section, Unreadable, read_document
from dgpo_cli.retrieval.corpus.documents import pdf as pdf_files
from dgpo_cli.retrieval.corpus.reader import CorpusReport, corpus_digest, read_corpus
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index


def shown(document: Document) -> list[tuple[str, str]]:
    """Sections that hold text, single-spaced."""
    found = [(section.heading, " ".join(section.text.split())) for section in document.sections]
    return [(heading, text) for heading, text in found if text]


def read(folder: Path) -> tuple[list[Passage], CorpusReport]:
    report = CorpusReport()
    passages = list(read_corpus(folder, report))
    assert report.digest == corpus_digest(folder)
    return passages, report


def test_html_shows_what_a_browser_shows() -> None:
    document = read_document(PAGE.encode(), ".html")
    assert document.title == "The Lun & its towns"
    assert shown(document) == [
        ("", "Home"),
        ("The river", "The Lun rises in Vesapo. It is long."),
        ("Towns on it", "Vesapo 300 people Tarn"),
    ]


def test_html_without_a_title_unclosed_and_in_a_declared_encoding() -> None:
    page = '<meta charset="iso-8859-1"><h1>Café</h1><p>très <b>lo</b>ng<script>var a = "<p>no</p>"'.encode("latin-1")
    document = read_document(page, ".htm")
    assert (document.title, shown(document)) == ("Café", [("Café", "très long")])
    assert shown(read_document(b"<title>open<body><p>text", ".html")) == [("", "text")]
    with pytest.raises(Unreadable, match=r"^no text$"):
        read_document(b"<style>p {}</style><title>only</title>", ".html")


def test_markdown_headings_front_matter_and_code() -> None:
    text = (
        "---\ntitle: 'Garden'\ntags:\n---\nBefore.\n\n# Water ##\nDaily.\n```\n# not a heading\n```\nSoil\n---\nDark."
    )
    document = read_document(text.encode(), ".md")
    assert document.title == "Garden"
    assert shown(document) == [("", "Before."), ("Water", "Daily. ``` # not a heading ```"), ("Soil", "Dark.")]
    assert read_document(b"# One\na\n## Two\nb", ".md").title == "One"
    assert read_document(b"#hashtag\n---\ntext", ".md").sections[0] == Section("", "")
    assert shown(read_document(b"- item\n\n---\n\nmore", ".md")) == [("", "- item --- more")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_by_its_byte_order_mark(encoding: str) -> None:
    assert read_document("Größe 中".encode(encoding), ".txt") == Document("", [Section("", "Größe 中")])
    big = b"\xfe\xff" + "Größe".encode("utf-16-be")
    assert read_document(big, ".txt").sections[0].text == "Größe"


@pytest.mark.parametrize(
    ("content", "suffix", "problem"),
    [
        (b"", ".txt", "empty"),
        (b" \n\t", ".md", "empty"),
        (" \n".encode("utf-16"), ".txt", "empty"),
        (b"\x7fELF\0\0\1", ".txt", "binary"),
        ("x".encode("utf-16-le"), ".txt", "binary"),
        ("é".encode("latin-1"), ".txt", "not utf-8 (convert it to UTF-8)"),
        (b"\xff\xfex", ".txt", "not utf-16 (convert it to UTF-8)"),
        (b'<meta charset="klingon">x', ".html", "not klingon (convert it to UTF-8)"),
        (b"not a PDF", ".pdf", "broken PDF"),
        (pdf("text")[:60], ".pdf", "broken PDF"),
        (pdf(""), ".pdf", "no text (a scan, perhaps)"),
    ],
)
def test_what_gives_no_text_says_why(content: bytes, suffix: str, problem: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_document(content, suffix)
    assert str(refused.value).startswith(problem)


def test_pdf_text_and_title() -> None:
    document = read_document(pdf("The Lun is a river.", title="On rivers"), ".pdf")
    assert (document.title, shown(document)) == ("On rivers", [("", "The Lun is a river.")])


def test_pdf_with_a_password() -> None:
    import io

    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret"))))
    writer.encrypt("word", algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    with pytest.raises(Unreadable, match="PDF with a password"):
        read_document(written.getvalue(), ".pdf")


def test_titles_ids_and_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.md").write_text("# Garden\nWater.\n## Soil\nDark.\n## Empty\n")
    (tmp_path / "a b.TXT").write_text(" ".join(f"This is line number {n}." for n in range(50)))
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    passages, report = read(tmp_path)
    assert [(p.id, p.title) for p in passages] == [
        ("a b.TXT#1", "a b"),
        ("a b.TXT#2", "a b"),
        ("b/notes.md#1", "Garden"),
        ("b/notes.md#2", "Garden: Soil"),
    ]
    assert passages[3].text == "Dark."
    assert (report.skipped, report.passages) == (0, 4)


def test_the_digest_follows_names_and_contents_of_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = read(tmp_path)[1].digest
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert read(tmp_path)[1].digest == first
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    renamed = read(tmp_path)[1].digest
    (tmp_path / "b.txt").write_text("two")
    assert len({first, renamed, read(tmp_path)[1].digest}) == 3


def test_files_that_are_none_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "huge.txt").write_text("x" * 60)
    (tmp_path / "README").write_text("x")
    monkeypatch.setattr("dgpo_cli.retrieval.corpus.folder.LARGEST", 50)
    passages, report = read(tmp_path)
    assert [p.id for p in passages] == ["a.txt#1"]
    assert report.kinds == {"not a file": 2, "too large": 1, "unknown kind": 1}


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as stream:
        stream.write(b"text")
    assert read(tmp_path)[0][0].id == "\\xff.txt#1"


def test_a_folder_with_nothing_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    with pytest.raises(InputError, match=r"no usable passage \(1 skipped; the first: a\.bin: unknown kind"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"a\.bin: unknown kind"):
        list(read_corpus(tmp_path, CorpusReport(), strict=True))


def test_a_file_with_several_names_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("A river town.", encoding="utf-8")
    (tmp_path / "a.txt").symlink_to(tmp_path / "z.txt")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "m.txt").hardlink_to(tmp_path / "z.txt")
    (tmp_path / "notes" / "same.txt").write_text("A river town.", encoding="utf-8")
    (tmp_path / "outside.md").symlink_to(_outside(tmp_path))
    report = CorpusReport()
    ids = [passage.id for passage in read_corpus(tmp_path, report)]
    assert ids == ["notes/m.txt#1", "notes/same.txt#1", "outside.md#1"], "equal contents are not the same file"
    assert report.digest == corpus_digest(tmp_path) and not report.skipped


def _outside(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.md"
    path.write_text("# A bridge\n\nOver the river.", encoding="utf-8")
    return path


def test_a_file_whose_name_is_no_text_is_indexed_and_its_name_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("Oslo is the capital of Norway.")
    (tmp_path / os.fsdecode(b"x.\xff")).write_text("?")
    build_index(tmp_path, tmp_path.with_name("index"))
    opened = open_index(tmp_path.with_name("index"))
    ((hit,),) = opened.retriever.search(["Oslo"], 1)
    assert (hit.passage.id, hit.passage.title) == ("caf\\xe9.txt#1", "caf\\xe9")
    assert opened.manifest is not None and opened.manifest.problems == ("x.\\xff: unknown kind (.\\xff)",)


def test_a_page_that_is_nested_too_deeply_is_told() -> None:
    assert shown(read_document(b"<div>" * 900 + b"deep", ".html")) == [("", "deep")]
    with pytest.raises(Unreadable, match=r"nested too deeply \(more than 1,000 elements\)"):
        read_document(b"<div>" * 100_000 + b"deep", ".html")


def test_a_pdf_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SimpleNamespace(pages=[_Page(b"q Q " * 10, 3)] * 4)
    assert list(pdf_files._pages(reader)) == ["text"] * 4
    for name, limit in (("_PDF_PAGES", 3), ("_PDF_OPERATIONS", 11), ("_PDF_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(pdf_files, name, limit)
            with pytest.raises(Unreadable, match="oversized PDF"):
                list(pdf_files._pages(reader))


class _Page:
    def __init__(self, contents: bytes, operations: int) -> None:
        self._contents, self._operations = contents, operations

    def get_contents(self) -> Any:
        return SimpleNamespace(get_data=lambda: self._contents)

    def extract_text(self, *, visitor_operand_before: Callable[..., None]) -> str:
        for _ in range(self._operations):
            visitor_operand_before(b"q", [], [], [])
        return "text"
