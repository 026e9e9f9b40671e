"""An agent that says that the documents do not hold an answer: questions, rewards, demonstrations and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.eval_reports import eval_report
from tests.retrieval_corpora import TOWNS, write_corpus, write_lines

from dgpo_cli.core.trajectory import Trajectory, WrittenTurn
from dgpo_cli.core.types import Hit, Question, SearchCall, StopReason
from dgpo_cli.errors import InputError
from dgpo_cli.evaluation.outcome import ErrorKind, grade
from dgpo_cli.evaluation.summary import Report, Summary, macro_average
from dgpo_cli.evaluation.tables import tables
from dgpo_cli.evaluation.withhold import withhold
from dgpo_cli.formats.abstention import ABSTENTION, MAY_ABSTAIN, abstains, is_unanswerable
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.rewards import registry
from dgpo_cli.training.teacher.gold import turn

HARBOUR = Question("q", "Who wrote Grey Harbour?", ("Mira Holt",), "set", supporting_ids=("d",))
HARD = replace(HARBOUR, answers=(ABSTENTION,))
BY_ID = {passage.id: passage for passage in TOWNS}


def episode(question: Question, answer: str | None, *read: str) -> Trajectory:
    hits = tuple(Hit(BY_ID[identity], 1.0, rank) for rank, identity in enumerate(read, start=1))
    return Trajectory(
        question=question,
        token_ids=(1, 2),
        written=(False, True),
        logprobs=None,
        searches=(SearchCall("q", hits),) if read else (),
        stop=StopReason.MAX_TURNS if answer is None else StopReason.ANSWERED,
        answer=answer,
        turns=1,
        written_turns=(WrittenTurn(1, 2, "answer", answer or "", thought=True, alone=True),),
    )


def test_figures_of_answerable_questions_are_left_out_where_all_are_unanswerable() -> None:
    graded = [grade(episode(HARD, "not in the documents", "a")), grade(episode(HARD, "Oslo"))]
    report = Report.of(graded)
    found = report.overall
    assert (found.first_hit, found.first_hit_interval, found.answer_retrieved) == (None, None, None)
    assert (found.abstained, found.abstained_unanswerable, found.evidence_recall) == (None, 0.5, None)
    other = Report.of([grade(episode(HARBOUR, "Mira Holt", "d"))])
    assert macro_average({"a": report, "b": other}).first_hit == other.overall.first_hit == 1.0
    assert macro_average({"a": report}).first_hit is None
    shown = {table.title: table.rows for table in tables(eval_report("made", report))}
    assert shown["What was retrieved"][0][2:4] == ("-", "-")


def test_an_abstention_is_compared_as_answers_are() -> None:
    assert abstains(" Not in the documents. ") and not abstains("not in the library") and not abstains(None)
    assert is_unanswerable(HARD) and not is_unanswerable(HARBOUR)
    assert not is_unanswerable(replace(HARD, answers=())) and not is_unanswerable(
        replace(HARD, answers=("a", ABSTENTION))
    )


@pytest.mark.parametrize(
    ("question", "answer", "read", "paid"),
    [
        (HARBOUR, "Mira Holt", "d", 1.0),
        (HARBOUR, "Ora Lint", "e", 0.0),
        (HARBOUR, ABSTENTION, "e", 0.5),  # nothing that was read holds the answer
        (HARBOUR, ABSTENTION, "d", 0.0),  # it was read
        (HARBOUR, ABSTENTION, "", 0.0),  # nothing was searched for
        (HARBOUR, None, "e", 0.0),
        (HARD, "Not in the documents", "e", 1.0),
        (HARD, "Mira Holt", "e", 0.0),
    ],
)
def test_the_reward_of_an_abstention(question: Question, answer: str | None, read: str, paid: float) -> None:
    assert registry.get("abstention")(episode(question, answer, *read)) == paid


def test_a_guess_pays_where_it_is_right_more_often_than_not() -> None:
    reward = registry.weighted({"em": 0.0, "abstention": 1.0})
    right, wrong, silent = (reward(episode(HARBOUR, a, "e")) for a in ("Mira Holt", "Ora Lint", ABSTENTION))
    assert 0.4 * right.total + 0.6 * wrong.total < silent.total < 0.6 * right.total + 0.4 * wrong.total
    assert right.correct and not silent.correct and reward(episode(HARD, ABSTENTION, "e")).correct


def test_question_files_may_say_that_a_question_is_unanswerable(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"id": "a", "question": "Who?", "unanswerable": True}])
    assert read_questions(path)[0].answers == (ABSTENTION,)
    for answers in (["Mira Holt"], "Mira", [1]):
        row = {"id": "a", "question": "Who?", "unanswerable": True, "golden_answers": answers}
        with pytest.raises(InputError, match=r"q\.jsonl:1: not a question: it is unanswerable, and its golden_answers"):
            read_questions(write_lines(path, [row]))


def test_the_gold_teacher_searches_and_then_says_so() -> None:
    asked = replace(HARD, supporting_titles=("Grey Harbour",))
    assert "<search> Grey Harbour </search>" in turn(asked, [], DEFAULT.agent_format)
    read = [[BY_ID["e"]], [BY_ID["b"]]]
    assert turn(asked, read, DEFAULT.agent_format).endswith(f"<answer> {ABSTENTION} </answer>")


def test_a_prompt_says_how_to_abstain_once() -> None:
    once = DEFAULT.abstaining()
    assert once.prompt.count(MAY_ABSTAIN) == 1 and once.abstaining() == once
    assert once.prompt.index(MAY_ABSTAIN) < once.prompt.index("Question: {question}")


def test_where_an_answer_stands() -> None:
    def support(question: Question, answer: str | None, *read: str) -> tuple[bool | None, bool | None]:
        outcome = grade(episode(question, answer, *read))
        return outcome.supported, outcome.gold_supported

    assert support(HARBOUR, "Mira Holt", "e", "d") == (True, True)
    assert support(HARBOUR, "Mira Holt", "a") == (True, False)
    assert support(HARBOUR, "Ora Lint", "d") == (False, False)
    assert support(replace(HARBOUR, supporting_ids=()), "Mira Holt", "d") == (True, None)
    assert support(HARD, "weavers", "e") == (True, None)
    for answer in ("yes", ABSTENTION, "---", None):
        assert support(HARBOUR, answer, "d") == (None, None)


def test_causes_of_wrong_answers_to_unanswerable_questions() -> None:
    assert grade(episode(HARD, "Ora Lint", "e")).error is ErrorKind.ANSWER_NOT_USED
    assert grade(episode(HARD, "weavers", "e")).error is ErrorKind.WRONG_REASONING
    assert grade(episode(HARD, ABSTENTION, "e")).error is None
    assert grade(episode(HARBOUR, ABSTENTION, "e")).error is ErrorKind.WRONG_RETRIEVAL
    assert grade(episode(HARBOUR, ABSTENTION, "d")).error is ErrorKind.ANSWER_NOT_USED


def test_risk_and_coverage() -> None:
    easy = [replace(HARBOUR, id=str(n)) for n in range(5)]
    hard = [replace(HARD, id=f"h{n}") for n in range(3)]
    played = [
        episode(easy[0], "Mira Holt", "d"),
        episode(easy[1], "Mira Holt", "c"),
        episode(easy[2], "Ora Lint", "d"),
        episode(easy[3], ABSTENTION, "e"),
        episode(easy[4], None, "e"),
        episode(hard[0], ABSTENTION, "e"),
        episode(hard[1], ABSTENTION, "e"),
        episode(hard[2], "weavers", "e"),
    ]
    outcomes = [grade(one) for one in played]
    found = Summary.of(outcomes)
    assert found.coverage == 4 / 8 and found.risk == 2 / 4  # Ora Lint and weavers
    assert found.supported == 3 / 4 and found.gold_supported == 1 / 3
    assert (found.unanswerable, found.abstained, found.abstained_unanswerable) == (3, 1 / 5, 2 / 3)
    assert found.em == 4 / 8
    assert found.answer_retrieved == 3 / 5 and found.first_hit == 3 / 5, "of the questions that have an answer"
    assert found.evidence_recall == 2 / 5 and found.with_gold == 5
    assert found.risk_interval is not None and 0.1 < found.risk_interval.low < 0.2
    silent = Summary.of([grade(episode(HARBOUR, None))])
    assert (silent.coverage, silent.risk, silent.risk_interval, silent.supported) == (0.0, None, None, None)


def test_the_table_tells_of_unanswerable_questions_where_there_are_some() -> None:
    def shown(*played: Trajectory) -> Any:
        report = eval_report("set", Report.of([grade(one) for one in played]))
        return next(table for table in tables(report) if table.title == "Answers and their evidence")

    plain = shown(episode(HARBOUR, "Mira Holt", "d"))
    assert plain.rows == (("set", "100.0 %", "0.0 %", "0.0-79.3 %", "100.0 %", "100.0 %"),)
    mixed = shown(episode(HARBOUR, ABSTENTION, "e"), episode(replace(HARD, id="h"), ABSTENTION, "e"))
    assert mixed.columns[-3:] == ("unanswerable", "told so", "told so of others")
    assert mixed.rows == (("set", "0.0 %", "-", None, "-", "-", 1, "100.0 %", "100.0 %"),)


ASKED = [
    replace(HARBOUR, id="novel", supporting_ids=("d",)),
    Question("mayor", "Who is the mayor of Vesapo?", ("Mira Holt",), "set", supporting_titles=("Vesapo",)),
    Question("weavers", "Who lives in Tarn?", ("weavers",), "set", supporting_ids=("e",)),
    Question("river", "Which river passes Vesapo?", ("Lun",), "set", supporting_ids=("b", "a")),
    Question("else", "Who is Ora Lint?", ("a baker",), "set"),
]  # fmt: skip


def test_passages_that_answer_a_question_are_withheld(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(write_corpus(tmp_path / "c.jsonl"), index, settings={"k1": 0.9})
    opened = open_index(index)
    for seed in range(6):
        made = withhold(opened, ASKED, 0.2, tmp_path / str(seed), seed=seed)
        rest = open_index(tmp_path / str(seed) / "index")
        assert rest.manifest is not None and rest.manifest.settings["k1"] == 0.9
        here = {passage.id for passage in rest.passages or ()}
        written = read_questions(tmp_path / str(seed) / "made.jsonl")
        hard = [question for question in written if is_unanswerable(question)]
        assert len(here) == len(TOWNS) - made.passages and made.without_gold == 1
        assert (len(hard), len(written) - len(hard)) == (made.unanswerable, made.answerable)
        assert made.unanswerable + made.answerable + made.lost + made.still_answered == len(ASKED)
        for question in written:
            gold = {p.id for p in TOWNS if question.key_of(p) in question.gold_keys}
            assert (gold <= here) != is_unanswerable(question)
        again = withhold(opened, ASKED, 0.2, tmp_path / str(seed), seed=seed)
        assert again == made
    drawn = [withhold(opened, ASKED, 0.2, tmp_path / "x", seed=seed) for seed in range(12)]
    assert any(one.unanswerable for one in drawn), "weavers are in no other passage"
    assert any(one.still_answered for one in drawn), "Mira Holt is in others that the question finds"
    assert any(one.lost for one in drawn), "two questions need the passage about Vesapo"


def test_questions_without_gold_passages_cannot_be_withheld(tmp_path: Path) -> None:
    build_index(write_corpus(tmp_path / "c.jsonl"), tmp_path / "index")
    with pytest.raises(InputError, match="none of 1 questions names a passage that"):
        withhold(open_index(tmp_path / "index"), ASKED[-1:], 0.5, tmp_path / "out")


def test_the_command_writes_a_corpus_an_index_and_questions(dgpo: Any, folder: Path) -> None:
    write_corpus(folder / "c.jsonl")
    rows = [
        {"id": q.id, "question": q.text, "golden_answers": q.answers, "supporting_ids": q.supporting_ids} for q in ASKED
    ]
    write_lines(folder / "q.jsonl", rows)
    assert dgpo("index", "c.jsonl").status == 0
    ended = dgpo("index", "withhold", "--questions", "q.jsonl", "--out", "hard", "--seed", "1", "--json")
    assert ended.status == 0, ended.err
    made = json.loads(ended.out)
    assert {path.name for path in (folder / "hard").iterdir()} >= {"corpus.jsonl", "made.jsonl", "index"}
    assert made["index"] == "hard/index" and made["passages"] > 0
    refused = dgpo("index", "withhold", "--questions", "q.jsonl", "--out", "hard")
    assert refused.status == 1 and "hard is there already" in refused.err
    assert "between 0 and 1" in dgpo("index", "withhold", "--questions", "q.jsonl", "--out", "x", "--share", "1").err
