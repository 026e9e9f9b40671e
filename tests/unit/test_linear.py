"""Work on untrusted text grows with its length and no faster: twice the input, about twice the time."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from copy import deepcopy

import pytest

from dgpo_cli.console import Console, _Door
from dgpo_cli.core.text import composed, contains_answer, f1, normalize_answer, text_key
from dgpo_cli.core.types import Passage
from dgpo_cli.core.untrusted import unmarked, visible, visible_json
from dgpo_cli.formats.registry import get
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec
from dgpo_cli.retrieval.corpus.documents import Unreadable, read_document
from dgpo_cli.retrieval.corpus.split import passages
from dgpo_cli.retrieval.lexical.words import WordTokenizer
from tiny import bpe_tokenizer

# `repeat` makes a text of about so many characters out of each.
SHAPES: dict[str, Callable[[int], str]] = {
    "blanks-after-<": lambda n: "<" + " " * n,
    "slashes": lambda n: "< /" + " " * n + "x",
    "many-<": lambda n: "< " * (n // 2),
    "unseen": lambda n: "<a" + "\u200b" * n,
    "many-unseen": lambda n: "<a\u200b" * (n // 3),
    "blanks": lambda n: " " * n + "x",
    "line-ends": lambda n: "\n" * n + "x",
    "line-ends-and-blanks": lambda n: ("\n" + " " * 50) * (n // 51) + "x",
    "search-open": lambda n: "<search>" * (n // 8),
    "search-closed": lambda n: "</search>" * (n // 9),
    "think-open": lambda n: "<think>" * (n // 7),
    "information-open": lambda n: "<information>" * (n // 13),
    "special-open": lambda n: "<|" * (n // 2),
    "special-long": lambda n: ("<|" + "a" * 70) * (n // 72),
    "dots": lambda n: "." * n,
    "quotes": lambda n: '."' * (n // 2) + "a",
    "initials": lambda n: "A." * (n // 2),
    "hyphens": lambda n: "-\n" * (n // 2),
    "equals": lambda n: "a\n" + "=" * n + " x",
    "list-items": lambda n: "\n- " * (n // 3),
    "digits": lambda n: "\n1" * (n // 2),
    "marks": lambda n: "e" + "\u0316\u0301" * (n // 2),
    "one-letter": lambda n: "a" * n,
    "the": lambda n: "the " * (n // 4),
    "no-spaces": lambda n: "東京。" * (n // 3),
    "controls": lambda n: "\x1b[2J" * (n // 4),
    "line-returns": lambda n: "\r\n" * (n // 2),
    "question-marks": lambda n: "?" * n,
    "byte-order-marks": lambda n: "\ufeff" * n,
}
PAGES: dict[str, Callable[[int], str]] = {
    "meta": lambda n: "<meta " * (n // 6),
    "open": lambda n: "<div>" * (n // 5),
    "open-inline": lambda n: "<b>" * (n // 3),
    "open-attributes": lambda n: "".join(f"<b id={i}>" for i in range(n // 12)),
    "closed": lambda n: "</div>" * (n // 6),
    "closed-in-depth": lambda n: "<x>" * 900 + "<div>" * 50 + "</x>" * (n // 4),
    "comments": lambda n: "<!--" * (n // 4),
    "declarations": lambda n: "<!" * (n // 2),
    "instructions": lambda n: "<?" * (n // 2),
    "entities": lambda n: "&amp;&#65;&" * (n // 11),
    "ampersands": lambda n: "&" * n,
    "attributes": lambda n: "<a " + "b=1 " * (n // 4) + ">x",
    "quotes": lambda n: "<a b='" * (n // 6),
    "tables": lambda n: "<table><tr><td>" * (n // 15),
    "headings": lambda n: "<h1>a" * (n // 5),
    "titles": lambda n: "<title>" * (n // 7),
    "scripts": lambda n: "<script>" * (n // 8),
    "templates": lambda n: "<template>" * (n // 10),
}
TOOL_CALLS = get("tool_calls")
CODEC = Codec(bpe_tokenizer(), DEFAULT)


def _encoded(text: str) -> object:
    CODEC._encode.cache_clear()
    return CODEC.observation_ids([Passage("1", text)], 500)


READERS: dict[str, Callable[[str], object]] = {
    "escape_tags": TAGS.escape,
    "parse_turn": TAGS.parse,
    "parse_turn-answer": lambda text: TAGS.parse(text.replace("search", "answer") + "</search>"),
    "render_results": lambda text: TAGS.render_results([Passage("1", text)]),
    "normalize_answer": normalize_answer,
    "contains_answer": lambda text: contains_answer(text, [text[: len(text) // 2] + "b"]),
    "f1": lambda text: f1(text, [text]),
    "composed": composed,
    "text_key": text_key,
    "visible": visible,
    "visible_json": visible_json,
    "unmarked": lambda text: [unmarked(text.encode()) for _ in range(20)],
    "passages": lambda text: list(passages(text)),
    "tool_calls": lambda text: TOOL_CALLS.parse(text, ended=True),
    "tool_calls-thought": lambda text: TOOL_CALLS.parse(f"<think>{text}", ended=True),
    "tags": lambda text: TAGS.stream().feed(text),
    "markdown": lambda text: _document(text, ".md"),
    "observation": _encoded,
    "served_text": lambda text: CODEC.served_text(CODEC.text_ids(text)),
    "words": lambda text: WordTokenizer(cut="unicode").words(text),
}


def _document(text: str, suffix: str) -> object:
    try:
        return read_document(text.encode(), suffix)
    except Unreadable:
        return None


def refuse_growth(work: Callable[[str], object], shape: Callable[[int], str], sizes: tuple[int, ...]) -> None:
    """Four times the text may take eight times as long; what takes no time at all is not measured."""
    for _ in range(3):
        seconds = []
        for size in sizes:
            text = shape(size)
            began = time.process_time()
            work(text)
            seconds.append(time.process_time() - began)
        if seconds[-1] < 0.1 or seconds[-1] < 8 * max(seconds[0], 1e-4):
            return
    raise AssertionError(f"{sizes} characters take {[round(s, 3) for s in seconds]} s")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reader", READERS)
def test_readers_of_text_are_linear(reader: str, shape: str) -> None:
    refuse_growth(READERS[reader], SHAPES[shape], (20_000, 40_000, 80_000))


@pytest.mark.parametrize("page", PAGES)
def test_the_reader_of_pages_is_linear(page: str) -> None:
    refuse_growth(lambda text: _document(text, ".html"), PAGES[page], (150_000, 300_000, 600_000))


def _terminal() -> Console:
    console = Console()
    for name in ("_out", "_err"):
        setattr(console, name, _Door(file=io.StringIO(), force_terminal=True, width=80, highlight=False, emoji=False))
    return console


SHOWN: dict[str, Callable[[str], object]] = {
    "warn": lambda text: _terminal().warn(text),
    "print": lambda text: _terminal().print(text),
    "paragraph": lambda text: _terminal().paragraph(text, indent=2),
    "stream": lambda text: _terminal().stream(text),
    "table": lambda text: _terminal().table(text, [text, "b"], [[text, "x"]]),
}


@pytest.mark.parametrize("shape", ["\\", "[", "[red]", "a ", "e\u0301", " "])
@pytest.mark.parametrize("show", SHOWN)
def test_what_a_terminal_shows_is_linear(show: str, shape: str) -> None:
    refuse_growth(SHOWN[show], lambda n: shape * (n // len(shape)) + "x", (2_000, 4_000, 8_000))


def slide_of(rows: int) -> bytes:
    """A slide with a table."""
    from pptx import Presentation

    deck, made = Presentation(), io.BytesIO()
    table = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_table(2, 1, 0, 0, 1, 1).table
    table.cell(0, 0).text, table.cell(1, 0).text = "Town", "Vesapo"
    for _ in range(rows):
        table._tbl.append(deepcopy(table._tbl.tr_lst[1]))
    deck.save(made)
    return made.getvalue()


def test_the_table_of_a_slide_is_read_row_by_row() -> None:
    made = {str(rows): slide_of(rows) for rows in (400, 800, 1600)}
    (section,) = read_document(made["400"], ".pptx").sections
    assert section.text == "\n\n".join(["Town", *["Vesapo"] * 401])
    refuse_growth(lambda rows: read_document(made[rows], ".pptx"), str, (400, 800, 1600))


def test_the_measure_sees_a_quadratic_pattern() -> None:
    pattern = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(tag.strip('</>') for tag in TAGS.markers)})\b)")
    with pytest.raises(AssertionError, match="characters take"):
        refuse_growth(pattern.findall, SHAPES["blanks-after-<"], (2_000, 4_000, 8_000))
