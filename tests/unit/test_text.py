import pytest

from dgpo_cli.core.text import (
    contains_answer,
    exact_match,
    f1,
    holds_phrase,
    is_empty_answer,
    normalize_answer,
    text_key,
)
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Passage, Question, StopReason
from dgpo_cli.errors import ConfigError
from dgpo_cli.rewards import registry


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  The  Beatles! ", "beatles"),
        ("an apple a day", "apple day"),
        ("theatre and Anna", "theatre and anna"),  # articles go as whole words only
        ("U.S.A.", "usa"),  # punctuation goes before words are looked at
        ("a.", ""),
        ("Zoë’s – café", "zoë’s – café"),  # only ASCII punctuation goes
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


def test_exact_match_takes_any_gold_answer():
    assert exact_match("the Beatles", ["Rolling Stones", "Beatles."])
    assert not exact_match("Beatles band", ["Beatles"])
    assert not exact_match("Beatles", [])


def test_containment_is_of_normalized_strings():
    assert contains_answer("It was THE Beatles, in 1963.", ["beatles in 1963"])
    assert not contains_answer("It was the Beatles", ["Stones"])


NOTHING = [
    "---", "A", "The", ")", "", " ", "?!", "an the", "\u00a0",
    "\u2014", "\u201c\u201d", "\u2026", "\u3002", "the \u2013", "\u200b", "\u202e", "\ufeff", "\u0301",
    "\u3164", "\u2800", "\u115f\u1160", "\ufffc",
]  # fmt: skip


@pytest.mark.parametrize("gold", NOTHING)
def test_an_answer_of_which_nothing_is_left_stands_in_no_text(gold):
    assert is_empty_answer(gold)
    for text in (
        "the capital \u2014 \u201cOslo\u201d\u2026\u200b\ufeff \u2013 of Norway\u3002",
        gold,
        "",
        f"so {gold} it is",
    ):
        assert not contains_answer(text, [gold]) and not holds_phrase(text, gold)
    assert contains_answer("Oslo, Norway", [gold, "Norway"]), "the others still count"


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("the", "A", False),
        ("a", "A", True),
        (" A ", "a", True),
        ("---", "---", True),
        ("--", "---", False),
        ("", "---", False),
        ("", "", False),
        (" ", "A", False),
        (")", ")", True),
        (")", "(", False),
        ("A cat", "A", False),  # something is left of it
        ("the", "the cat", False),
        ("\u2014", "\u2014", True),
        ("a \u2014 b", "\u2014", False),
        ("\u2014", "Paris \u2014 France", False),
        ("\u200b", "\ufeff", False),
        ("\U0001f44d", "\U0001f44d", True),  # a sign that says something
        ("\u20ac", "\u20ac", True),
    ],
)
def test_an_answer_of_which_nothing_is_left_is_compared_as_written(prediction, gold, right):
    assert exact_match(prediction, [gold]) is right
    assert f1(prediction, [gold]) == float(right)


def test_letters_are_the_same_however_they_were_composed():
    nfd, nfc = "Cafe\u0301 Nin\u0303o", "Caf\u00e9 Ni\u00f1o"
    assert normalize_answer(nfd) == normalize_answer(nfc) == "café niño"
    assert exact_match(nfd, [nfc]) and contains_answer(f"The {nfc}.", [nfd]) and f1(nfd, [nfc]) == 1.0
    assert exact_match("\ud55c\uad6d", ["\u1112\u1161\u11ab\u1100\u116e\u11a8"]), "Hangul in one piece and in letters"
    assert text_key("  Cafe\u0301\u00a0\t Noir ") == "Café Noir"
    assert text_key("Iron man") != text_key("Iron Man"), "Wikipedia has an article of each"


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Oslo"\nOslo is', "Oslo", "Oslo is"),
        ('"Oslo"\r\nOslo is', "Oslo", "Oslo is"),
        ('"Oslo"\rOslo is', "Oslo", "Oslo is"),
        (' "Oslo" \nOslo is', "Oslo", "Oslo is"),
        ('" Oslo "\nOslo is', "Oslo", "Oslo is"),
        ('"Oslo"\nOslo\r\nis', "Oslo", "Oslo\r\nis"),
        ('"Oslo" and "Bergen"\nboth', 'Oslo" and "Bergen', "both"),
        ('""Heroes""\nis a song', '"Heroes"', "is a song"),
        ("Oslo", "Oslo", ""),
        ("", "", ""),
    ],
)
def test_a_title_is_the_first_line_whatever_ends_it(contents, title, text):
    passage = Passage("1", contents)
    assert (passage.title, passage.text) == (title, text)


def test_gold_passages_are_known_by_ids_or_else_by_titles():
    by_title = Question("1", "?", ("x",), "set", supporting_titles=(" Cafe\u0301  Noir",))
    by_id = Question("1", "?", ("x",), "set", supporting_titles=("Other",), supporting_ids=("notes/cafe\u0301.md#1",))
    passage = Passage("notes/café.md#1", '"Café Noir"\r\na bar')
    for question in (by_title, by_id):
        assert question.gold_keys == {question.key_of(passage)}
    assert not Question("1", "?", ("x",), "set").gold_keys


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("new york city", ["New York"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("york york", ["york"], 2 * 0.5 * 1 / 1.5),  # a word counts as often as it stands
        ("paris", ["london", "Paris, France"], 2 * 1 * 0.5 / 1.5),  # the best over the answers
        ("", ["a"], 0.0),  # a blank prediction equals nothing
        ("A", ["a"], 1.0),  # nothing is left of either, and they are written alike
        ("the", ["A"], 0.0),
        ("the cat", ["the"], 0.0),
        ("x", ["the"], 0.0),
        ("x", [], 0.0),
    ],
)
def test_token_f1(prediction, answers, expected):
    assert f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "total"), [("the Dune", 1.0), ("Dune II", 0.0), (None, 0.0)], ids=["right", "wrong", "none"]
)
def test_the_exact_match_reward(answer, total):
    question = Question("1", "which book?", ("Dune",), "made-up")
    trajectory = Trajectory(question, (1, 2), (False, True), None, (), StopReason.ANSWERED, answer)
    score = registry.weighted({})(trajectory)
    assert (score.total, score.correct, dict(score.parts)) == (total, bool(total), {"em": total})


def test_an_unknown_reward_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="unknown reward") as caught:
        registry.get("f2")
    assert "em" in str(caught.value.hint)


@pytest.mark.parametrize("answer", ["\U0001f44d", "\u20ac", "1,000", "\u0663", "\u0e01", "\u00bd", "\u2167"])
def test_signs_and_digits_of_any_script_are_answers(answer):
    assert not is_empty_answer(answer)
    assert contains_answer(f"so {answer} it is", [answer]) and exact_match(answer, [answer])
