"""`dgpo make-questions` as a command: from a corpus to what is trained and measured, by templates and by teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.model_server import ModelServer
from tests.retrieval_corpora import write_lines
from tests.tiny import bpe_tokenizer, qwen

from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.make_questions.teacher import PLAIN
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.load import load_tokenizer, save_model
from dgpo_cli.qa_sets import read_questions


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that nobody trained, with room for whole prompts."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "student", bpe_tokenizer(chat=True)
    save_model(folder, qwen(len(tokenizer), positions=4096), tokenizer, DEFAULT)
    return str(folder)


def test_from_a_corpus_to_trajectories_and_an_evaluation(dgpo, folder: Path, offline, student: str) -> None:
    made = dgpo("make-questions", str(offline.corpus), "--no-model", "--passages", "60", "--test", "0.3")
    assert made.status == 0, made.err
    assert "next: dgpo distill-data --teacher gold --tokenizer" in made.out or "next: dgpo models" in made.out
    run = folder / "runs/make-questions-0001"
    assert f"{len(read_questions(run / 'train.jsonl')):,} questions in runs/make-questions-0001/train.jsonl" in made.out
    assert json.loads((run / "run.json").read_text())["result"]["kept"] > 20
    gold = dgpo("distill-data", "--teacher", "gold", "--tokenizer", student, "--limit", "8", "--json")
    assert gold.status == 0, gold.err
    assert json.loads(gold.out)["kept"] > 0
    asked = dgpo("eval", "--model", str(offline.student), "--limit", "2", "--device", "cpu", "--json", "--top-k", "1")
    assert asked.status == 0, asked.err
    assert list(json.loads(asked.out)["benchmarks"]) == ["made"]
    audited = dgpo("audit", str(run / "test.jsonl"), "--json")
    assert json.loads(audited.out)["ceiling"] == 1.0, "every kept question can be answered"


def test_the_same_command_makes_the_same_files(dgpo, folder: Path, offline) -> None:
    for out in ("one", "two"):
        again = dgpo("make-questions", str(offline.index), "--no-model", "--passages", "30", "--out", out, "--json")
        assert again.status == 0, again.err
    for name in ("train.jsonl", "candidates.jsonl"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert dgpo("make-questions", "--config", "one/config.toml", "--out", "three").status == 0
    assert (folder / "three/train.jsonl").read_bytes() == (folder / "one/train.jsonl").read_bytes()


TOWNS = [
    {"id": "a", "title": "Vesapo", "text": "Vesapo is a town on the Ona River in Kelda. Its mayor is Mira Holt."},
    {"id": "b", "title": "Mira Holt", "text": "Mira Holt is a politician who studied in Orlen."},
]


def story(prompt: str) -> str:
    """Writes a question about each passage, and answers that of Orlen where it can read of it."""
    if "Write " in prompt:
        return f" Which word of {'Mira Holt' if 'politician' in prompt else 'Vesapo'} is it? Think of it.\n\n"
    return " Orlen\n\n" if "studied in Orlen" in prompt else " I do not know\n\n"


@pytest.mark.parametrize("tokenwise", [False, True])
def test_a_served_teacher_writes_and_answers(dgpo, folder: Path, student: str, tokenwise: bool) -> None:
    codec = Codec(load_tokenizer(student), PLAIN)
    server = ModelServer(story, codec=codec if tokenwise else None)
    try:
        made = dgpo("make-questions", str(write_lines(folder / "towns.jsonl", TOWNS)), "--teacher-url", server.url,
                    "--tokenizer", student, "--validation", "0", "--test", "0", "-o", "hops=1",
                    "--json")  # fmt: skip
    finally:
        server.close()
    assert made.status == 0, made.err
    assert json.loads(made.out)["fates"] == {"1": {"unreadable": 1, "kept": 1}}
    (question,) = read_questions(folder / "runs/make-questions-0001/train.jsonl")
    assert (question.text, question.answers, question.supporting_ids) == (
        "Which word of Mira Holt is it?",
        ("Orlen",),
        ("b",),
    )


def test_a_loaded_teacher_that_knows_nothing_keeps_nothing(dgpo, folder: Path, offline, student: str) -> None:
    ended = dgpo("make-questions", str(offline.index), "--teacher", student, "--passages", "6", "-o",
                 "max_question_tokens=8", "--device", "cpu")  # fmt: skip
    assert ended.status == 1
    assert "no question is kept of 6 passages" in ended.errors[0] and "candidates.jsonl" in ended.err
    rows = (folder / "runs/make-questions-0001/candidates.jsonl").read_text().splitlines()
    assert len(rows) == 1 + 12
    written = [json.loads(row)["fate"] for row in rows[1:]]
    assert "UNWRITTEN" in written and set(written) <= {"UNWRITTEN", "NO_PARTNER"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone.jsonl --no-model", "gone.jsonl: No such file"),
        ("http://127.0.0.1:9 --no-model", "is a server, which does not tell its passages"),
        ("{index} --no-model --teacher {teacher}", "--no-model asks no teacher"),
        ("{index} --teacher gold", "--teacher gold answers questions that are there"),
        ("{index} --teacher someone/model", "someone/model is not cached"),
        ("{index} --no-model --validation 0.5 --test 0.5", "leave no document for training"),
        ("{index} --no-model --passages 0", "passages = 0 leaves nothing"),
        ("{index} --no-model -k 0", "top_k = 0 leaves nothing"),
        ("{index} --no-model -o hops=3", "hops = '3' is not"),
        ("{index} --no-model -o waves=3", "has no option 'waves'"),
        ("--no-model", "no index given, and none remembered"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(dgpo, folder: Path, offline, given: str, said: str) -> None:
    words = [word.format(index=offline.index, teacher=offline.teacher) for word in given.split()]
    ended = dgpo("make-questions", *words)
    assert ended.status == 1
    assert len(ended.errors) == 1 and said in ended.errors[0], ended.err
    assert not (folder / "runs").exists()


def test_the_hint_without_documents_is_a_command_that_there_is(dgpo, folder: Path) -> None:
    """It has no --index, which other commands propose."""
    assert "hint: name the documents: `dgpo make-questions FOLDER`" in dgpo("make-questions", "--no-model").err


def test_a_corpus_that_changed_names_the_command_that_indexes_it(dgpo, folder: Path) -> None:
    corpus = write_lines(folder / "towns.jsonl", TOWNS)
    assert dgpo("make-questions", str(corpus), "--no-model").status == 0
    write_lines(corpus, TOWNS[:1])
    ended = dgpo("make-questions", str(corpus), "--no-model")
    assert ended.status == 1 and "held before it changed" in ended.errors[0]
    assert "dgpo index" in ended.err and "--overwrite" not in ended.err
