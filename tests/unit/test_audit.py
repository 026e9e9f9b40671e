"""What of a question set a corpus can answer, by hand-made passages; and the command over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.retrieval_corpora import write_lines

from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, Passage, Question, Score, SearchCall, StopReason
from dgpo_cli.evaluation.audit import Chance, chances, read_through, search, summary
from dgpo_cli.retrieval.index.build import build_index
from dgpo_cli.retrieval.open import OpenIndex, open_index

PASSAGES = [
    Passage.from_title("a", "Vesapo", "Vesapo is a river town. Its mayor is Mira Holt."),
    Passage.from_title("b", "Tarn", "Tarn is a town of weavers."),
    Passage.from_title("c", "Mira Holt", "The politician studied in Orlen, by the sea."),
    Passage.from_title("d", "Towns", "A list of towns: Vesapo, Tarn, Brask."),
]


def question(id: str, text: str, *answers: str, titles: tuple[str, ...] = ()) -> Question:
    return Question(id, text, answers, "towns", supporting_titles=titles)


QUESTIONS = [
    question("mayor", "Who is the mayor of Vesapo?", "Mira Holt", titles=("Vesapo",)),
    question("study", "Where did the mayor of Vesapo study?", "Orlen", titles=("Vesapo", "Mira Holt")),
    question("none", "Who founded Tarn?", "Aldous Finch", titles=("Tarn",)),
    question("yes", "Is Tarn a town?", "Yes"),
    question("empty", "Which sign?", "---", "Brask"),
]


@pytest.fixture
def index(tmp_path: Path) -> OpenIndex:
    rows = [{"id": p.id, "contents": p.contents} for p in PASSAGES]
    build_index(write_lines(tmp_path / "towns.jsonl", rows), tmp_path / "towns")
    return open_index(tmp_path / "towns")


def test_an_answer_is_reached_by_the_question_a_gold_title_the_corpus_or_not_at_all(index: OpenIndex) -> None:
    assert index.passages is not None
    found = search(index.retriever, QUESTIONS, 1)
    assert [each.by_question for each in found] == [1, None, None, None, None]
    assert [each.by_titles for each in found] == [1, 1, None, None, None]
    whole = read_through(index.passages, found)
    assert [each.anywhere for each in whole] == [True, True, False, False, True]
    assert [each.hopeless for each in whole] == [False, False, True, False, False]
    made = summary(whole, 1, 1)
    assert (made.questions, made.yes_no, made.with_titles) == (5, 1, 3)
    assert made.anywhere == pytest.approx(3 / 5) and made.in_k == pytest.approx(1 / 5)
    assert made.by_titles == pytest.approx(2 / 3)
    assert made.ceiling == pytest.approx(3 / 5)  # mayor, study, and yes, which need not be read
    assert made.highest == pytest.approx(4 / 5)


def test_answers_that_no_passage_states_are_no_lost_questions(index: OpenIndex) -> None:
    """Yes and no beside an answer of which nothing is left, and questions that their file calls unanswerable."""
    assert index.passages is not None
    asked = [
        question("dash", "Is Tarn a town?", "Yes", "---"),
        question("article", "Is Tarn a port?", "A", "no"),
        question("hard", "Who founded Vesapo?", "Not in the documents."),
        question("hard too", "Who founded Tarn?", "not in the documents"),
        question("nothing", "Which sign?", "---"),
    ]
    reached = read_through(index.passages, search(index.retriever, asked, 4))
    assert [each.hopeless for each in reached] == [False, False, False, False, True]
    made = summary(reached, 1, 1)
    assert (made.yes_no, made.unanswerable, made.anywhere) == (2, 2, 0.0)
    assert made.ceiling == made.highest == pytest.approx(4 / 5)


def test_no_answer_reaches_over_two_passages(index: OpenIndex) -> None:
    assert index.passages is not None
    across = question("across", "What?", "weavers Mira")  # the end of b and the title of c
    assert not read_through(index.passages, search(index.retriever, [across], 4))[0].anywhere


def test_wrong_answers_by_what_they_could_have_been_made_from(index: OpenIndex) -> None:
    assert index.passages is not None
    reached = read_through(index.passages, search(index.retriever, QUESTIONS, 4))

    def episode(number: int, *read: int, right: bool = False) -> Trajectory:
        calls = tuple(SearchCall("q", (Hit(PASSAGES[row], 1.0, 1),)) for row in read)
        score = Score(float(right), right)
        return Trajectory(QUESTIONS[number], (1, 2), (False, True), None, calls, StopReason.ANSWERED, "x", score=score)

    episodes = [episode(0, right=True), episode(0, 1), episode(1, 2), episode(2, 1), episode(3)]
    assert chances(episodes, reached) == {Chance.UNFOUND: 1, Chance.READ: 2, Chance.NONE: 1}


def test_the_command_writes_what_can_be_answered(dgpo: Callable[..., Any], folder: Path, index: OpenIndex) -> None:
    from dgpo_cli.core.types import question_to_json

    write_lines(folder / "q.jsonl", [question_to_json(each) for each in QUESTIONS[:4]])
    ended = dgpo("audit", "q.jsonl", "--index", index.location, "-k", "1", "--write", "good.jsonl", "--json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    assert told["without_an_answer"] == ["towns/none"] and told["highest"] == 0.75
    written = [json.loads(line)["id"] for line in (folder / "good.jsonl").read_text().splitlines()]
    assert written == ["mayor", "study", "yes"]
    again = dgpo("audit", "good.jsonl", "--index", index.location)
    assert again.status == 0 and "ceiling of EM, any search" in again.out and "100.0 %" in again.out


def test_a_run_is_audited_as_it_read_and_by_what_it_was_asked(
    dgpo: Callable[..., Any], folder: Path, index: OpenIndex
) -> None:
    """The set has another name in the file than in the run, and the run read one passage a search."""
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.core.types import question_to_json

    asked = QUESTIONS[:3]
    write_lines(folder / "mine.jsonl", [question_to_json(each) | {"qa_set": "mine"} for each in asked])
    with RunDir.open("eval", {"benchmarks": ["towns"], "model": "m"}, out=folder / "runs" / "eval-0001") as run:
        header = {"schema": "evaluation", "version": 1, "protocol": {}, "settings": {"top_k": 1}}
        episodes = [
            Trajectory(q, (1, 2), (False, True), None, (), StopReason.ANSWERED, "x", score=Score(0.0, False))
            for q in asked
        ]
        write_lines(run.path / "towns.jsonl", [header, *({"key": t.key} | t.to_json() for t in episodes)])
        run.finish({})
    ended = dgpo("audit", "mine.jsonl", "--run", "eval-0001", "--index", index.location, "--json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    assert told["wrong_answers"] == {"no_chance": 1, "not_found": 2}
    assert told["k"] == 1 and "top_k: 1 (as eval-0001 read)" in ended.err
    assert json.loads(dgpo("audit", "mine.jsonl", "--index", index.location, "--json").out)["k"] == 3
    write_lines(folder / "other.jsonl", [{"id": "mayor", "question": "Another?", "golden_answers": ["Orlen"]}])
    ended = dgpo("audit", "other.jsonl", "--run", "eval-0001", "--index", index.location)
    assert ended.status == 0 and "eval-0001 answered other questions than other.jsonl holds" in " ".join(
        ended.err.split()
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--index", "towns"], "nothing to audit"),
        (["q.jsonl", "--index", "towns", "-k", "0"], "-k 0 is not between 1 and --depth 100"),
        (["q.jsonl", "--index", "towns", "--run", "gone"], "gone"),
        (["gone.jsonl", "--index", "towns"], "gone.jsonl"),
    ],
)
def test_bad_input_is_one_line(
    dgpo: Callable[..., Any], folder: Path, index: OpenIndex, argv: list[str], says: str
) -> None:
    write_lines(folder / "q.jsonl", [{"question": "Who?", "golden_answers": ["Mira Holt"]}])
    ended = dgpo("audit", *[index.location if part == "towns" else part for part in argv])
    assert ended.status == 1 and len(ended.errors) == 1 and says in ended.errors[0], ended.err
