"""In which passage and sentence an answer stands."""

import pytest

from dgpo_cli.core.types import Hit, Passage, SearchCall
from dgpo_cli.retrieval.evidence import evidence


def searches(*calls):
    """Each call a list of (title, text)."""
    return tuple(
        SearchCall(
            "q", tuple(Hit(Passage.from_title("i", *page), 1.0, rank) for rank, page in enumerate(call, start=1))
        )
        for call in calls
    )


def sentence(answer, text, title="T"):
    found = evidence(answer, searches([(title, text)]))
    return None if found is None else found.sentence


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("Vesapo", "He is old. He was born in Vesapo. He died.", "He was born in Vesapo."),
        ("the vesapo!", "Born in VESAPO", "Born in VESAPO"),  # compared as answers are
        ("Vesapo", "In Vesapo's port.", "In Vesapo's port."),
        ("U.S.", "He left the U.S. in May.", "He left the U.S. in May."),
        ("Jean-Luc", "It was Jean-Luc who came.", "It was Jean-Luc who came."),
        ("New York", "A New-York play.", "A New-York play."),
        ("St. Louis", "One. Born in St. Louis in 1950. Two.", "Born in St. Louis in 1950."),
        ("J. R. R. Tolkien", "It is by J. R. R. Tolkien. Yes.", "It is by J. R. R. Tolkien."),
        ("Caf\u00e9", "The Cafe\u0301 opened.", "The Cafe\u0301 opened."),
        ("19", "Born in 1950.", None),  # no part of a word
        ("art", "It started.", None),
        ("巴黎", "法国的首都是巴黎。它很大。", "法国的首都是巴黎。"),  # every character may begin a word
        ("गान", "गाना सुना", None),  # a vowel sign belongs to its word
        ("गाना", "एक गाना।", "एक गाना।"),
        ("no", "There was no king.", None),  # judges, and quotes nothing
        ("Yes", "Yes is a band.", None),
        ("", "text", None),
        (None, "text", None),
        ("---", "a --- b", None),
        ("The", "The end", None),
        (")", "(x)", None),
    ],
)
def test_the_sentence(answer, text, expected):
    assert sentence(answer, text) == expected


def test_the_last_search_comes_first_then_the_rank_and_texts_before_titles():
    first = [("Ada", "Ada wrote."), ("X", "By Ada.")]
    second = [("Y", "Nothing."), ("Z", "Ada, again."), ("W", "Ada.")]
    found = evidence("Ada", searches(first, second))
    assert (found.place, found.passage.title, found.sentence) == (3, "Z", "Ada, again.")
    found = evidence("Ada", searches([("Ada", "A countess."), ("X", "Of Ada.")]))
    assert (found.place, found.sentence) == (1, "Of Ada.")
    found = evidence("Ada", searches([("Y", "Nothing.")], [("Ada", "A countess.")]))
    assert (found.place, found.sentence) == (1, "Ada")
    assert evidence("Ada", searches([])) is None and evidence("Ada", ()) is None


def test_a_text_without_sentences_is_shown_in_part():
    text = " ".join(f"word{number}" for number in range(2000))
    found = sentence("word1500", text)
    assert "word1500" in found.split() and len(found) <= 300
    across = sentence(" ".join(f"word{number}" for number in range(100, 120)), text)
    assert "word100 " in across and " word119" in across and len(across) <= 900


def test_an_answer_over_many_sentences_leads_to_the_first():
    assert sentence("Aa bb. Cc dd. Ee ff. Gg hh.", "Aa bb. Cc dd. Ee ff. Gg hh.") == "Aa bb."
