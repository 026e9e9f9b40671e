"""Stop strings found token by token, against `in` on the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_cli.engine.stops import StopMatcher, Stops
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec
from tiny import bpe_tokenizer

CHUNKS = [b"<", b"/", b"</", b"a", b">", b"</a>", b">\n\n", b"a>b", "é".encode()[:1], "é".encode()[1:], b"", b"aa"]


def first_stop(pieces, stop):
    """Number of pieces after which the text contains a stop string, by looking at the whole text each time."""
    for count in range(1, len(pieces) + 1):
        if any(text.encode() in b"".join(pieces[:count]) for text in stop):
            return count
    return None


@given(
    tokens=st.lists(st.integers(0, len(CHUNKS) - 1), max_size=30),
    stop=st.lists(st.sampled_from(["</a>", "a", "aa", "é", "a>b", ">\n", "</a></a>"]), max_size=3),
)
def test_the_first_match_is_where_the_whole_text_first_contains_a_stop_string(tokens, stop):
    expected = first_stop([CHUNKS[token] for token in tokens], stop)
    stops = Stops(stop, CHUNKS.__getitem__)
    for size in (1, 3, 31):
        matcher, found = StopMatcher(stops), None
        for start in range(0, len(tokens), size):
            count = matcher.feed(tokens[start : start + size])
            if count is not None:
                found = start + count
                break
        assert found == expected


def test_an_end_of_text_token_ends_a_turn_wherever_it_stands():
    stops = Stops(("</a>",), CHUNKS.__getitem__, eos_ids={10})
    assert StopMatcher(stops).feed([3, 3, 10, 5]) == 3
    assert StopMatcher(stops).feed([5, 10]) == 1
    matcher = StopMatcher(stops)
    assert [matcher.feed([3, 3]), matcher.feed([10])] == [None, 1]


@given(before=st.text(max_size=12), after=st.text(max_size=12), tag=st.sampled_from(TAGS.stops))
def test_a_real_vocabulary_stops_in_the_token_that_completes_the_tag(codec, before, after, tag):
    text = f"{before}{tag}{after}"
    ids = codec.tokenizer(text, add_special_tokens=False).input_ids
    count = StopMatcher(Stops(TAGS.stops, codec.token_bytes)).feed(ids)
    assert any(end in codec.decode(ids[:count]) for end in TAGS.stops)
    assert not any(end in codec.decode(ids[: count - 1]) for end in TAGS.stops)


def test_a_tag_merged_with_what_follows_still_stops(codec):
    ids = codec.tokenizer("x</search>\n\n", add_special_tokens=False).input_ids
    assert codec.token_bytes(ids[-1]) not in (b">", b"\n")  # otherwise this vocabulary has no such merge
    assert StopMatcher(Stops(TAGS.stops, codec.token_bytes)).feed(ids) == len(ids)


def test_without_stop_strings_nothing_stops():
    assert StopMatcher(Stops((), CHUNKS.__getitem__)).feed(range(len(CHUNKS))) is None


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Stops(("</a>", ""), CHUNKS.__getitem__)


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)
