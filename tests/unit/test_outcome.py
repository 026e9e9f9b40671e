"""Why an answer is wrong, what counts as well formed, what was retrieved: hand-made episodes through the real loop."""

import json

import pytest

from dgpo_cli.agent.loop import run_episodes
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.records import RecordFile
from dgpo_cli.core.types import Hit, Passage, Question
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.evaluation.outcome import ErrorKind, evidence_recall, grade, is_format_valid
from dgpo_cli.evaluation.run import evaluate
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from tiny import bpe_tokenizer

PASSAGES = {
    "tower": Passage.from_title("1", "Tower", "The tower was built by Ada Byron. Its porter was John Smith."),
    "ada": Passage.from_title("2", "Ada Byron", "Ada Byron was born in Vesapo."),
    "other": Passage.from_title("3", "Mill", "A mill."),
}
RIGHT = "<think> I read it</think><answer> Ada Byron</answer>"


class Retriever:
    """The passages whose key is a word of the query, in the order of the words."""

    def search(self, queries, k):
        found = [[PASSAGES[word] for word in query.split() if word in PASSAGES] for query in queries]
        return [[Hit(p, 1.0, rank) for rank, p in enumerate(passages[:k], start=1)] for passages in found]


@pytest.fixture(scope="module")
def codec():
    return Codec(bpe_tokenizer(), DEFAULT)


def play(codec, turns_of, **gold):
    """One trajectory per entry: name -> turns."""
    asked = [Question(name, f"Question {name}x", ("Ada Byron",), "nq", **gold) for name in turns_of]
    script = {q.text: turns_of[q.id] for q in asked}
    return list(
        run_episodes(
            [(q, 0) for q in asked],
            engine=ScriptedEngine(codec, turns_by_question(script)),
            codec=codec,
            retriever=Retriever(),
            settings=RolloutSettings(max_turns=2, temperature=0),
        )
    )


SIX = {  # one of every kind, and a right one
    "right": ["<search> tower</search>", RIGHT],
    "no_answer": ["<search> tower</search>", "<search> ada</search>", "<search> mill</search>"],
    "wrong_format": ["<search> tower</search>", "<answer> it was Ada Byron herself</answer>"],
    "wrong_retrieval": ["<search> other</search>", "<answer> John Smith</answer>"],
    "answer_not_used": ["<search> tower</search>", "<answer> Charles Babbage</answer>"],
    "wrong_reasoning": ["<search> tower</search>", "<answer> John Smith</answer>"],
}


def test_the_six_sorts_of_episodes(codec, tmp_path):
    trajectories = play(codec, SIX)
    graded = {t.question.id: grade(t) for t in trajectories}
    assert graded.pop("right").error is None
    assert {name: o.error for name, o in graded.items()} == {kind.value: kind for kind in ErrorKind}

    with RecordFile(tmp_path / "nq.jsonl", key="key", schema="evaluation") as records:
        report = evaluate(
            [t.question for t in trajectories],
            run_batch=lambda pairs, progress: trajectories,
            records=records,
        )
    assert report.overall.errors == {kind.value: 1 for kind in ErrorKind}
    assert report.overall.em == 1 / 6 and report.overall.format_valid == 5 / 6
    rows = [json.loads(line) for line in (tmp_path / "nq.jsonl").read_text().splitlines()[1:]]
    assert {row["question"]["id"]: row["outcome"]["error"] for row in rows} == {
        name: None if name == "right" else name for name in SIX
    }


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        (["well", "well", "well"], ErrorKind.NO_ANSWER),  # before wrong format, although no turn had an action
        (["<answer> the.</answer>"], ErrorKind.NO_ANSWER),  # nothing is left of it
        (["well", "<answer> Babbage</answer>"], ErrorKind.WRONG_FORMAT),  # before wrong retrieval: nothing was searched
        (["<answer> Lady Ada Byron</answer>"], ErrorKind.WRONG_FORMAT),  # right, but it says too much
        (["<answer> Babbage</answer>"], ErrorKind.WRONG_RETRIEVAL),
        (["<search> tower</search>", "<search> other</search>", "<answer> Mill</answer>"], ErrorKind.WRONG_REASONING),
    ],
)
def test_the_order_of_precedence(codec, turns, kind):
    (trajectory,) = play(codec, {"a": turns})
    assert grade(trajectory).error is kind


@pytest.mark.parametrize(
    ("turns", "valid"),
    [
        ([RIGHT], True),
        (["<answer>x</answer>\n"], True),
        (["\n<think>a < b</think>\n\n<search> tower</search>\n\n", RIGHT], True),
        (["I think <answer>x</answer>"], False),  # a word outside of the tags
        (["<think>a</think><think>b</think><answer>x</answer>"], False),
        (["<think>a<answer>x</answer>"], False),
        (["<information>x</information><answer>x</answer>"], False),
        (["<think><search>a</think><answer>x</answer>"], False),  # a tag inside a thought
        (["<answer> </answer>"], False),
        (["<search> </search>", RIGHT], False),
        (["well", RIGHT], False),
        (["<search> tower</search>", "<search> tower</search>", "<search> tower</search>"], False),  # no answer
    ],
)
def test_what_is_well_formed(codec, turns, valid):
    (trajectory,) = play(codec, {"a": turns})
    assert is_format_valid(trajectory) is valid


def test_first_hit_looks_at_the_first_search_alone_and_evidence_at_all(codec):
    turns = {
        "late": ["<search> other</search>", "<search> tower ada</search>", RIGHT],
        "first": ["<search> tower</search>", RIGHT],
        "never": [RIGHT],
    }
    gold = {"supporting_titles": ("Tower", "Ada Byron")}
    graded = {t.question.id: grade(t) for t in play(codec, turns, **gold)}
    assert {name: o.first_hit for name, o in graded.items()} == {"late": False, "first": True, "never": False}
    assert {name: o.answer_retrieved for name, o in graded.items()} == {"late": True, "first": True, "never": False}
    assert {name: o.evidence_recall for name, o in graded.items()} == {"late": 1.0, "first": 0.5, "never": 0.0}


def test_evidence_is_matched_by_id_where_ids_are_known(codec):
    (trajectory,) = play(codec, {"a": ["<search> tower other</search>", RIGHT]})

    def recall(**gold):
        return evidence_recall(Question("a", "?", ("x",), "nq", **gold), trajectory.searches)

    assert recall() is None
    assert recall(supporting_ids=("1", "2", "3"), supporting_titles=("Elsewhere",)) == pytest.approx(2 / 3)
    assert recall(supporting_titles=("Mill",)) == 1.0


def test_evidence_recall_is_a_mean_over_questions_whose_gold_is_known(codec):
    known = play(codec, {"a": ["<search> tower</search>", RIGHT]}, supporting_ids=("1", "2"))
    unknown = play(codec, {"b": ["<search> tower</search>", RIGHT]})
    report = evaluate([t.question for t in known + unknown], run_batch=lambda pairs, progress: known + unknown)
    assert (report.overall.evidence_recall, report.overall.with_gold, report.overall.n) == (0.5, 1, 2)
