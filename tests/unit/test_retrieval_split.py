"""Running text to sentences and passages."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from dgpo_cli.retrieval.corpus.split import passages, sentences, size


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = (
        'Dr. Holt met J. R. Tarn on Jan. 3 at 4.30 p.m. in Vesapo. "Is it far?" he asked. It was, e.g. by boat!\n'
        "So they\nwaited… In 1899 it ended. 12 men left.\n\nA heading\n\nlast words"
    )
    assert list(sentences(text)) == [
        "Dr. Holt met J. R. Tarn on Jan. 3 at 4.30 p.m. in Vesapo.",
        '"Is it far?" he asked.',
        "It was, e.g. by boat!",
        "So they waited…",
        "In 1899 it ended.",
        "12 men left.",
        "A heading",
        "last words",
    ]


def test_list_items_and_scripts_without_spaces() -> None:
    assert list(sentences("Bring:\n- a lamp\n- two  ropes\n1. Go.")) == [
        "Bring:",
        "- a lamp",
        "- two ropes",
        "1.",
        "Go.",
    ]
    assert list(sentences("他走了。「真的？」她问。")) == ["他走了。", "「真的？」", "她问。"]


def test_passages_are_alike_in_length_and_end_with_sentences() -> None:
    text = " ".join(f"Sentence number {n} has exactly seven words." for n in range(60))  # 420 words
    found = list(passages(text))
    assert len(found) == 4
    assert [len(p.split()) for p in found] == [105, 105, 105, 105]
    assert all(p.startswith("Sentence") and p.endswith("words.") for p in found)
    assert " ".join(found) == text


def test_short_text_is_one_passage_and_none_is_none() -> None:
    assert list(passages("One. Two.")) == ["One. Two."]
    assert list(passages(" \n\n ")) == []


def test_text_without_sentences_is_cut_all_the_same() -> None:
    words = " ".join(f"w{n}" for n in range(1_000))
    found = list(passages(words))
    assert " ".join(found) == words
    assert all(50 <= len(p.split()) <= 160 for p in found)
    letters = list(passages("x" * 5_000))
    assert "".join(letters) == "x" * 5_000
    assert max(map(len, letters)) <= 1_600


@given(st.lists(st.text(alphabet="ab. \n!?A1-。", max_size=40), max_size=40).map(" ".join))
def test_no_character_is_lost_and_no_passage_is_long(text: str) -> None:
    found = list(passages(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(p and size(p) <= 250 for p in found)


def test_hostile_text_takes_no_longer() -> None:
    began = time.perf_counter()
    for text in ("." * 200_000 + "x", "a. b. " * 30_000, "\n" + " " * 200_000 + "x", "A.B." * 50_000, "。" * 100_000):
        list(passages(text))
    assert time.perf_counter() - began < 10
