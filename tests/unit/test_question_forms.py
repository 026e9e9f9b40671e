"""Question files of other forms than FlashRAG's, and what each refuses by line."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.commands.common.options import absolute
from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError
from dgpo_cli.evaluation.suite import parse_benchmarks, parse_indexes
from dgpo_cli.formats.abstention import ABSTENTION, is_unanswerable
from dgpo_cli.qa_sets import load_questions, read_questions, training_set

ROW = {"id": "q1", "question": "who?", "golden_answers": ["Holt"]}


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_id_is_made_from_the_text_and_stays(tmp_path: Path) -> None:
    asked = {"question": "Where is the café?", "golden_answers": ["Oslo"]}
    (first,) = read_questions(lines(tmp_path / "a.jsonl", asked))
    (again,) = read_questions(lines(tmp_path / "b.jsonl", asked | {"question": " Where is  the cafe\u0301? "}))
    (other,) = read_questions(lines(tmp_path / "c.jsonl", asked | {"question": "Where is the bar?"}))
    assert first.id == again.id != other.id
    with pytest.raises(InputError, match=r"d\.jsonl:3: the question, which has no id, is also on line 1"):
        read_questions(lines(tmp_path / "d.jsonl", asked, ROW, asked))


def test_whole_hops_as_a_table_writes_them(tmp_path: Path) -> None:
    floats = {"id": 7.0, "hops": 2.0, "supporting_ids": [3.0, "x", 4]}
    (question,) = read_questions(lines(tmp_path / "a.jsonl", ROW | floats))
    assert question.hops == 2 and isinstance(question.hops, int)
    assert (question.id, question.supporting_ids) == ("7", ("3", "x", "4"))
    with pytest.raises(InputError, match=r"`id` is 1\.5"):
        read_questions(lines(tmp_path / "b.jsonl", ROW | {"id": 1.5}))


def test_csv_and_tsv(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(
        b"\xef\xbb\xbfID,Question,Answer,hops\r\n"
        b'7,"Who, then?",Mira Holt,2\r\n'
        b'\r\n"x ","A ""quoted""\nquestion","[""Holt"", ""M. Holt""]",\r\n'
    )
    assert read_questions(path) == [
        Question("7", "Who, then?", ("Mira Holt",), "mine", 2),
        Question("x", 'A "quoted"\nquestion', ("Holt", "M. Holt"), "mine"),
    ]
    tabbed = tmp_path / "mine.tsv.gz"
    tabbed.write_bytes(gzip.compress(b"question\tanswers\nwho?\tHolt\n"))
    (question,) = load_questions(str(tabbed))
    assert (question.text, question.answers, len(question.id)) == ("who?", ("Holt",), 16)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("question,answer\nwho?\n", r"bad\.csv:2: 1 columns, the first line names 2"),
        ("question,reply\nwho?,Holt\n", r"bad\.csv:2: not a question: no answer"),
        ("text,answer\nwho?,Holt\n", r"bad\.csv:2: not a question: no question"),
        ("question,answer\nwho?,Holt\nwhere?,\n", r"bad\.csv:3: not a question: no answer"),
        ('question,answer\nwho?,"[]"\n', r"bad\.csv:2: .*`golden_answers` is a list of 0, not a list of at least 1"),
        ('question,answer\nwho?,"[""a"", "" ""]"\n', r"bad\.csv:2: .*`golden_answers\[1\]` is"),
        ("question,answer,hops\nwho?,Holt,two\n", r"bad\.csv:2: .*hops"),
        ('question,answer\n"who?,Holt\n', r"bad\.csv:2: unexpected end"),
        ("question,answer\n", "holds no question"),
        ("question,answer\nwho?,\"['Holt', 'M. Holt']\"\n", r"bad\.csv:2: its answers are no list in JSON"),
        ("question,answer\nwho?,\"['Holt' 'M. Holt']\"\n", r"bad\.csv:2: its answers are no list in JSON"),
        ("", "holds no question"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        read_questions(path)


def test_an_ending_in_capitals_is_the_same_ending(tmp_path: Path) -> None:
    path = tmp_path / "Mine.CSV"
    path.write_text("question,answer\nwho?,Holt\n", encoding="utf-8")
    (question,) = load_questions(str(path))
    assert (question.text, question.answers, question.qa_set) == ("who?", ("Holt",), "Mine")


def test_popqas_own_table(tmp_path: Path) -> None:
    path = tmp_path / "popQA.tsv"
    path.write_text('id\tobj\tquestion\tpossible_answers\n4\tHolt\twho?\t"[""Holt"", ""M. Holt""]"\n', encoding="utf-8")
    assert read_questions(path) == [Question("4", "who?", ("Holt", "M. Holt"), "popQA")]


@pytest.mark.parametrize("name", ["own.parquet", "own.XLSX"])
def test_a_table_that_is_no_text_is_refused_for_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff\x00")
    with pytest.raises(InputError, match=r"questions are not read from \.") as told:
        load_questions(str(tmp_path / name))
    assert told.value.hint == "write the table as .csv or .jsonl"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('question\tanswer\n"Heroes" is by whom?\tBowie\n', "quotation mark"),
        ("Who sang Heroes?\tBowie\n", "a first line that names the columns"),
    ],
)
def test_the_hint_is_about_the_fault_of_the_table(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "own.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert told in (error.value.hint or "")


def test_a_table_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"question,answer\nwho?,Holt\nwhere?,caf\xe9\n")
    with pytest.raises(InputError, match=r"bad\.csv:3: not UTF-8"):
        read_questions(path)


def squad(*asked: dict[str, Any]) -> dict[str, Any]:
    paragraph = {"context": "Mira Holt lives in Vesapo.", "qas": list(asked)}
    return {"version": "v2.0", "data": [{"title": "Vesapo", "paragraphs": [paragraph]}]}


def test_squad(tmp_path: Path) -> None:
    answers = [{"text": "Vesapo", "answer_start": 19}, {"text": "Vesapo", "answer_start": 19}, {"text": "in Vesapo"}]
    path = tmp_path / "dev-v2.0.json"
    held = squad(
        {"id": "5", "question": "Where does she live?", "answers": answers, "is_impossible": False},
        {"question": "Who is he?", "id": "6", "answers": [], "is_impossible": True},
        {"question": "Who was he?", "id": "7", "plausible_answers": [{"text": "Mira Holt"}], "is_impossible": True},
    )
    path.write_text(json.dumps(held, indent=1), encoding="utf-8")
    found = read_questions(path)
    assert found == [
        Question("5", "Where does she live?", ("Vesapo", "in Vesapo"), "dev-v2.0"),
        Question("6", "Who is he?", (ABSTENTION,), "dev-v2.0"),
        Question("7", "Who was he?", (ABSTENTION,), "dev-v2.0"),
    ]
    assert [is_unanswerable(question) for question in found] == [False, True, True]


def test_a_table_may_say_that_a_question_is_unanswerable(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("question,answer,unanswerable\nwho?,,TRUE\nwhere?,Oslo,false\nwhen?,1999,\n", encoding="utf-8")
    assert [question.answers for question in read_questions(path)] == [(ABSTENTION,), ("Oslo",), ("1999",)]
    path.write_text("question,answer,unanswerable\nwho?,Holt,true\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.csv:2: not a question: it is unanswerable, and its golden_answers"):
        read_questions(path)
    path.write_text("question,answer,unanswerable\nwho?,Holt,perhaps\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.csv:2: not a question: `unanswerable` is 'perhaps', not true or"):
        read_questions(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (squad({"id": "5", "answers": []}), "question 1: not of SQuAD's form: no 'question'"),
        (squad({"id": "5", "question": "who?"}), "question 1: not of SQuAD's form: no 'answers'"),
        (squad({"id": "5", "question": "who?", "answers": []}), "question 1: not a question: `golden_answers`"),
        (
            squad({"question": "who?", "answers": [{"text": "Holt"}], "is_impossible": True}),
            "question 1: not a question: it is unanswerable, and its golden_answers are",
        ),
        (
            squad({"question": "who?", "answers": [{"text": "Holt"}], "is_impossible": "no"}),
            "question 1: not a question: `unanswerable` is 'no', not true or false",
        ),
        ({"data": [{"title": "x"}]}, "not of SQuAD's form: no 'paragraphs'"),
        ({"data": [3]}, "not of SQuAD's form"),
        ({"rows": []}, "neither SQuAD's JSON nor a list"),
        ([1, 2], "neither SQuAD's JSON nor a list"),
        ("[" * 100_000, "not JSON"),
        ('{"data":\n\n !', r"bad\.json:3: not JSON"),
    ],
)
def test_bad_json_is_refused(tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        read_questions(path)


def test_a_small_file_that_unpacks_to_a_large_one_is_not_read(tmp_path: Path) -> None:
    for name in ("bad.json.gz", "bad.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"[" + b"0," * 9_000_000))
        with pytest.raises(InputError, match=r"more than 16,777,216 bytes in it"):
            read_questions(tmp_path / name)


def test_a_json_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([ROW, ROW | {"id": "q2"}], indent=2), encoding="utf-8")
    assert [question.id for question in read_questions(path)] == ["q1", "q2"]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "scifact"
    lines(folder / "queries.jsonl", *({"_id": str(n), "text": f"claim {n}", "metadata": {}} for n in (3, 1, 2)))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t1\n1\td2\t2\n3\td9\t0\n2\td4\t1\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n3\td3\t1\n")
    return folder


def test_beir_queries_with_their_qrels(beir: Path) -> None:
    expected = [
        Question("1", "claim 1", (), "scifact", supporting_ids=("d1", "d2")),
        Question("2", "claim 2", (), "scifact", supporting_ids=("d4",)),
    ]
    assert read_questions(beir, answers=False) == expected
    read = read_questions(beir / "queries.jsonl", answers=False)
    assert [(q.id, q.supporting_ids) for q in read] == [(q.id, q.supporting_ids) for q in expected]
    (trained,) = read_questions(beir / "qrels" / "train.tsv", answers=False)
    assert (trained.id, trained.supporting_ids) == ("3", ("d3",))
    with pytest.raises(InputError, match="`golden_answers` is a list of 0, not a list of at least 1"):
        read_questions(beir)


def test_ids_of_queries_match_whatever_stands_around_them(beir: Path) -> None:
    rows = ({"_id": name, "text": f"claim {name}"} for name in (" 1", "cafe\u0301", "x"))
    lines(beir / "queries.jsonl", *rows)
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\r\n1\td1\t1\r\ncaf\u00e9\td2\t1\r\n", "utf-8")
    read = read_questions(beir, answers=False)
    assert [(q.id, q.supporting_ids) for q in read] == [("1", ("d1",)), ("caf\u00e9", ("d2",))]


def test_bad_qrels_are_refused_by_line(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\tmuch\n")
    with pytest.raises(InputError, match=r"test\.tsv:2: could not convert"):
        read_questions(beir, answers=False)
    (beir / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"scifact has no queries\.jsonl"):
        read_questions(beir, answers=False)


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a,b.jsonl", ROW)
    lines(tmp_path / "b.jsonl", ROW | {"id": "q2"})
    lines(tmp_path / "c.jsonl", ROW | {"id": "q3"})
    lines(tmp_path / "questions", ROW | {"id": "q4"})
    assert [q.id for q in training_set("a,b.jsonl")] == ["q1"]
    assert [q.id for q in training_set("b.jsonl, c.jsonl,questions")] == ["q2", "q3", "q4"]
    (tmp_path / "wiki,small").mkdir()
    assert parse_indexes("wiki,small", ["nq"]) == {"nq": "wiki,small"}
    many = [f"a-file-of-questions-{n:02}" for n in range(20)]  # together longer than the name of a file may be
    for n, name in enumerate(many):
        lines(tmp_path / f"{name}.jsonl", ROW | {"id": f"m{n}"})
    files = ",".join(f"{name}.jsonl" for name in many)
    assert len(training_set(files)) == 20 and absolute(files) == files
    assert list(parse_benchmarks(files)) == many
    assert list(parse_indexes(",".join(f"{name}=i" for name in many), many)) == many


FACTS = [["Ona", 0], ["Vesapo", 2], ["Ona", 1]]
PARAGRAPHS = [{"title": t, "is_supporting": t != "Kelda", "paragraph_text": "x"} for t in ("Ona", "Kelda", "Vesapo")]
TRIVIA = {"Value": "Vesapo", "Aliases": ["Vesapo", "", "The Vesapo"], "NormalizedAliases": ["vesapo"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "who?", "answer": ["Holt", "M. Holt"]}, Question("", "who?", ("Holt", "M. Holt"), "own")),
        ({"question": "who?", "answer": "Holt", "id": 3}, Question("3", "who?", ("Holt",), "own")),
        (
            {"question": "who?", "id": "x", "answers": {"text": ["Holt"], "answer_start": [1]}},
            Question("x", "who?", ("Holt",), "own"),
        ),
        (  # HotpotQA, 2WikiMultiHopQA
            {"_id": "5a", "question": "who?", "answer": "yes", "supporting_facts": FACTS, "context": [["Ona", ["x"]]]},
            Question("5a", "who?", ("yes",), "own", supporting_titles=("Ona", "Vesapo")),
        ),
        (
            {"id": "5a", "question": "who?", "answer": "Holt", "supporting_facts": {"title": ["Ona"], "sent_id": [0]}},
            Question("5a", "who?", ("Holt",), "own", supporting_titles=("Ona",)),
        ),
        (  # MuSiQue
            {"id": "2hop__1", "question": "who?", "answer": "Holt", "answer_aliases": ["M. Holt", "Holt"],
             "answerable": True, "paragraphs": PARAGRAPHS},
            Question("2hop__1", "who?", ("Holt", "M. Holt"), "own", supporting_titles=("Ona", "Vesapo")),
        ),
        (
            {"id": "2hop__1", "question": "who?", "answer": "Holt", "answer_aliases": [], "answerable": False},
            Question("2hop__1", "who?", (ABSTENTION,), "own"),
        ),
        (  # TriviaQA, a file's and the hub's
            {"Question": "where?", "QuestionId": "tc_1", "Answer": TRIVIA},
            Question("tc_1", "where?", ("Vesapo", "The Vesapo"), "own"),
        ),
        (
            {"question": "where?", "question_id": "tc_1", "answer": {k.lower(): v for k, v in TRIVIA.items()}},
            Question("tc_1", "where?", ("Vesapo", "The Vesapo"), "own"),
        ),
    ],
)  # fmt: skip
def test_rows_of_the_sets_own_files(tmp_path: Path, row: dict[str, Any], expected: Question) -> None:
    (tmp_path / "own.json").write_text(json.dumps([row]), encoding="utf-8")
    for path in (lines(tmp_path / "own.jsonl", row), tmp_path / "own.json"):
        (found,) = read_questions(path)
        assert replace(found, id=expected.id or found.id) == replace(expected, id=expected.id or found.id)


def test_the_file_of_triviaqa(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    held = {"Data": [{"Question": "where?", "QuestionId": "tc_1", "Answer": TRIVIA}], "Version": 1.0}
    path.write_text(json.dumps(held), encoding="utf-8")
    assert read_questions(path) == [Question("tc_1", "where?", ("Vesapo", "The Vesapo"), "own")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "who?", "answer": True}, "`golden_answers` is True, not a list"),
        ({"question": "who?", "answer": 1969}, "`golden_answers` is 1969, not a list"),
        ({"question": "who?", "answer": [1969]}, r"`golden_answers\[0\]` is 1969, not a non-empty text"),
        ({"question": "who?", "answer": {"aliases": ["x"]}}, "`golden_answers` is None, not a list"),
        ({"question": "who?", "answer": "x", "supporting_facts": [[["a"], 0]]}, r"`supporting_titles\[0\]` is a list"),
        ({"question": "who?"}, "`golden_answers` is missing"),
        ({"question": "who?", "answer": "x", "answerable": "no"}, "`unanswerable` is 'no', not true or false"),
    ],
)
def test_rows_of_no_known_form_are_refused_for_what_they_hold(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=rf"own\.jsonl:1: not a question: {problem}"):
        read_questions(lines(tmp_path / "own.jsonl", row))


def test_a_table_as_a_european_spreadsheet_writes_it_and_one_with_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("question;answer\nwho, then?;Holt\n", encoding="utf-8")
    assert [(q.text, q.answers) for q in read_questions(path)] == [("who, then?", ("Holt",))]
    path.write_text("question,answer,Answer\nwho?,Holt,Lint\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.csv:1: two columns are called answer"):
        read_questions(path)


def test_answers_of_which_nothing_is_left_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = lines(tmp_path / "nq.jsonl", ROW, ROW | {"id": "q2", "golden_answers": ["---", "The", "Oslo"]})
    assert len(read_questions(path)) == 2
    (record,) = caplog.records
    told = record.getMessage()
    assert "\n" not in told and "punctuation: 2, the first" in told and "'---' of question q2" in told
    caplog.clear()
    read_questions(lines(tmp_path / "good.jsonl", ROW))
    assert not caplog.records
