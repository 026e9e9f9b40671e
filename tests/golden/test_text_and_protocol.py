"""Answers, actions and observations exactly as the reference has them."""

import pytest

from dgpo_cli.core.text import contains_answer, exact_match, is_empty_answer, normalize_answer
from dgpo_cli.core.types import Passage
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models import published_prompt
from golden.reference import VECTORS


@pytest.mark.parametrize("case", VECTORS["scoring"], ids=lambda case: repr(case["prediction"])[:30])
def test_scoring(case):
    assert normalize_answer(case["prediction"]) == case["normalized"]
    assert exact_match(case["prediction"], case["golden_answers"]) == bool(case["em"])
    # By the reference's sub_em an answer of which nothing is left stands in every text; by ours in none.
    golds = case["golden_answers"]
    held = contains_answer(case["prediction"], golds) or any(map(is_empty_answer, golds))
    assert held == bool(case["sub_em"])


@pytest.mark.parametrize("case", VECTORS["action_parsing"], ids=lambda case: repr(case["generated"])[:30])
def test_action_parsing(case):
    turn = TAGS.parse(case["generated"])
    assert (turn.kept, turn.action, turn.content) == (case["kept"], case["action"], case["content"])


@pytest.mark.parametrize("case", VECTORS["observation_rendering"])
def test_observation_rendering(case):
    rendered, escaped = DEFAULT.render_observation([Passage(str(i), text) for i, text in enumerate(case["contents"])])
    assert (rendered, escaped) == (case["rendered"], 0)


def test_the_expected_prompt_is_the_one_of_the_vectors():
    """The text itself is not kept here: what can be held is that the constants agree with the published digests."""
    published = {c["question"]: (c["characters"], c["sha256"]) for c in VECTORS["search_r1_prompt"]}
    shared = published.keys() & published_prompt.CHECKS.keys()
    assert {q: published[q] for q in shared} == {q: published_prompt.CHECKS[q] for q in shared}
    around = {characters - len(question) for question, (characters, _) in published.items() if question.endswith("?")}
    ours = {characters - len(question) for question, (characters, _) in published_prompt.CHECKS.items()}
    assert around == ours and len(ours) == 1, "one template: as many characters around every question"
