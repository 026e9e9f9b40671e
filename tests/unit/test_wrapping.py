"""Lines of a terminal: whole words on each, however the text arrives."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from dgpo_cli.core.wrapping import Flow, first_line, wrapped


def streamed(parts, width):
    flow = Flow(lambda: width, cell_len)
    return "".join(text for part in parts for text, _ in flow.feed(part)) + "".join(text for text, _ in flow.flush())


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=12), st.integers(9, 30))
def test_a_stream_is_wrapped_as_the_standard_library_wraps_the_whole(words, width):
    text = " ".join(words)
    assert streamed(list(text), width).split("\n") == (textwrap.wrap(text, width) or [""])


@given(st.lists(st.text("ab \n\tüé漢字<>"), max_size=12), st.integers(4, 30))
def test_no_line_is_too_long_no_letter_is_lost_and_arrival_does_not_matter(parts, width):
    whole = "".join(parts)
    out = streamed(parts, width)
    assert "".join(out.split()) == "".join(whole.split())
    assert all(cell_len(line) <= width for line in out.split("\n"))
    assert out == streamed([whole], width) == streamed(list(whole), width)


def test_a_word_in_several_styles_stays_whole():
    flow = Flow(lambda: 12, cell_len)
    assert flow.feed("eight888 ", None) == [("eight888", None)]
    assert flow.feed("<b>", "dim") == []
    assert flow.feed("word", "cyan") == []
    assert flow.feed(" x", None) == [("\n", None), ("<b>", "dim"), ("word", "cyan")]
    assert flow.flush() == [(" ", None), ("x", None)] and flow.column == 9


def test_line_ends_blanks_at_the_start_and_empty_lines_are_kept():
    assert wrapped("  a\n\n b ", 10, cell_len) == ["  a", "", " b "]


def test_what_has_no_spaces_is_broken_where_it_may_be():
    assert wrapped("x 漢字漢字漢字", 6, cell_len) == ["x 漢字", "漢字漢", "字"]
    assert wrapped("ab abcdefghijkl m", 5, cell_len) == ["ab ab", "cdefg", "hijkl", "m"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two", "one two"),
        ("one  two\nthree", "one two three"),
        ("one two three four", "one two …"),
        ("onetwothreefour", "onetwothree …"),
        ("", ""),
    ],
)
def test_the_first_line(text, shown):
    assert first_line(text, 13, cell_len) == shown


def test_the_first_line_of_a_long_text_says_that_it_goes_on():
    assert first_line("a" + " " * 1000 + "b", 13, cell_len) == "a …"
