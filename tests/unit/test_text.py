import pytest

from dgpo_cli.core.text import contains_answer, exact_match, f1, normalize_answer
from dgpo_cli.core.types import Question, StopReason, Trajectory
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


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("new york city", ["New York"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("york york", ["york"], 2 * 0.5 * 1 / 1.5),  # a word counts as often as it stands
        ("paris", ["london", "Paris, France"], 2 * 1 * 0.5 / 1.5),  # the best over the answers
        ("", ["a"], 1.0),  # both empty after normalization
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
    score = registry.weighted({})(trajectory, "")
    assert (score.total, score.correct, dict(score.parts)) == (total, bool(total), {"em": total})


def test_an_unknown_reward_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="unknown reward") as caught:
        registry.get("f2")
    assert "em" in str(caught.value.hint)
