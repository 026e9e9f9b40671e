"""Reward parts by hand: values of the format machine's every transition, and the weighted sum with its gate."""

import pytest
from tests.tiny import bpe_tokenizer

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.config import apply_options, parse_options
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Passage, Question, SearchCall, StopReason
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.errors import ConfigError
from dgpo_cli.formats.tags import DEFAULT, TAGS
from dgpo_cli.models.codec import Codec
from dgpo_cli.rewards import format_score, registry
from dgpo_cli.training.settings import RLSettings

THINK, ANSWER = "<think> who? </think>", "<answer> Ada Lovelace </answer>"
SEARCH, WRONG = "<search> engine </search>", "<answer> Byron </answer>"


def episode(answer, passage="nothing here", turns=()):
    """`turns` are the texts that the model wrote."""
    return Trajectory(
        question=Question("q", "?", ("Ada Lovelace", "Countess"), "set"),
        token_ids=(1, 2),
        written=(False, True),
        logprobs=None,
        searches=(SearchCall("engine", (Hit(Passage("p", passage), 1.0, 1),)),),
        stop=StopReason.ANSWERED if answer else StopReason.MAX_TURNS,
        answer=answer,
        written_turns=tuple(TAGS.parse(turn).at(1, 2) for turn in turns),
    )


@pytest.mark.parametrize(
    ("turns", "valid"),
    [
        ([THINK + ANSWER], True),
        ([f"\n {THINK} \n {ANSWER}\n"], True),
        ([THINK + SEARCH, THINK + ANSWER], True),
        ([THINK + SEARCH, THINK + SEARCH, THINK + ANSWER], True),
        ([ANSWER], False),  # no thought
        ([THINK + SEARCH, ANSWER], False),  # no thought after reading
        ([THINK + SEARCH, SEARCH, THINK + ANSWER], False),  # a search without a thought
        ([THINK + THINK + ANSWER], False),
        ([THINK + SEARCH, THINK], False),  # no answer
        ([THINK + SEARCH + THINK + ANSWER], False),  # nothing read
        ([THINK + "well, " + ANSWER], False),  # text between blocks
        (["so: " + THINK + ANSWER], False),
        ([THINK + ANSWER + " done"], False),
        ([THINK + ANSWER + ANSWER], False),
        (["<think> who? " + ANSWER], False),  # not closed
        (["<think> <search> who? </think>" + ANSWER], False),  # a tag inside a block
        ([THINK, THINK + ANSWER], False),  # a turn without an action
        ([""], False),
        ([], False),
    ],
)
def test_the_structure_of_search_r1(turns, valid):
    assert format_score.has_valid_structure(episode("Ada Lovelace", turns=turns)) is valid


@pytest.mark.parametrize(
    ("turns", "answer", "expected"),
    [
        ([THINK + ANSWER], "Ada Lovelace", 1.0),
        ([ANSWER], "Ada Lovelace", 0.8),
        ([THINK + WRONG], "Byron", 0.2),
        ([THINK + SEARCH, THINK + WRONG], "Byron", 0.2),
        ([WRONG], "Byron", 0.1),
        ([THINK], None, 0.0),
    ],
)
def test_the_format_score_of_search_r1(turns, answer, expected):
    assert format_score.part(episode(answer, turns=turns)) == pytest.approx(expected)


def test_the_retrieval_term_of_the_format_score_needs_structure_and_a_gold_answer_retrieved():
    turns, gold = [THINK + SEARCH, THINK + WRONG], "Ada Lovelace wrote it"
    assert format_score.part(episode("Byron", gold, turns), retrieved=0.05) == pytest.approx(0.25)
    assert format_score.part(episode("Byron", "someone", turns), retrieved=0.05) == pytest.approx(0.2)
    assert format_score.part(episode("Byron", gold, [SEARCH, WRONG]), retrieved=0.05) == 0.1


@pytest.mark.parametrize(
    ("name", "answer", "passage", "expected"),
    [
        ("f1", "Ada King", "", 0.5),  # one word of two on both sides
        ("f1", "the Countess", "", 1.0),
        ("f1", None, "", 0.0),
        ("retrieval_hit", None, '"Engine"\nby ADA, Lovelace.', 1.0),  # the normalization deletes punctuation
        ("retrieval_hit", None, '"Engine"\nby ADA Lovelace.', 1.0),
        ("retrieval_hit", "Ada Lovelace", "nothing here", 0.0),
        ("em", "ada lovelace!", "", 1.0),
    ],
)
def test_parts_by_hand(name, answer, passage, expected):
    assert registry.get(name)(episode(answer, passage)) == pytest.approx(expected)


def test_the_total_is_weighted_the_parts_are_not_and_the_gate_stays_on_em():
    reward = registry.weighted({"f1": 0.2, "format": 0.5})
    score = reward(episode("Ada King", turns=[THINK + "<answer> Ada King </answer>"]))
    assert score.parts == pytest.approx({"em": 0.0, "f1": 0.5, "format": 0.2})
    assert score.total == pytest.approx(0.2 * 0.5 + 0.5 * 0.2)
    assert score.correct is False
    unweighted = registry.weighted({"em": 0.0, "f1": 1.0})(episode("Countess"))
    assert (unweighted.total, unweighted.correct) == (1.0, True)


def test_weights_come_from_the_command_line():
    options = {"student": "s", "teacher": "t", "index": "i", "questions": "q"} | parse_options(["reward.f1=0.2"])
    assert apply_options(RLSettings, options).reward == {"f1": 0.2}
    with pytest.raises(ConfigError, match=r"reward.f1 = 'much' is not float"):
        apply_options(RLSettings, options | {"reward": {"f1": "much"}})
    with pytest.raises(ConfigError, match="unknown reward part 'rouge'"):
        registry.weighted({"rouge": 1.0})
    with pytest.raises(ConfigError, match="every weight"):
        registry.weighted({"em": 0.0})


def test_a_rollout_is_rewarded_by_its_text_without_the_prompt():
    """The prompt holds example tags, which must not count; the observation does."""
    codec = Codec(bpe_tokenizer(), DEFAULT)
    turns = ["<think> a </think>\n<search> x </search>", "<think> b </think> <answer> Byron </answer>"]
    engine = ScriptedEngine(codec, turns_by_question({"who?": turns}))
    question = Question("q", "who?", ("Ada Lovelace",), "set")
    agent = Agent(engine, codec, _Library(), RolloutSettings(), registry.weighted({"format": 1.0, "em": 0.5}))
    (scored,) = agent.run([(question, 0)])
    assert scored.score.parts == {"em": 0.0, "format": 0.2}
    assert scored.score.total == 0.2


class _Library:
    def search(self, queries, k):
        return [[Hit(Passage("p", '"Engine"\nA machine.'), 1.0, 1)] for _ in queries]
