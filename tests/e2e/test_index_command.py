"""`dgpo index` and `dgpo index check` from the command line."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.documents import pdf
from tests.retrieval_corpora import TOWNS, write_corpus, write_lines
from tests.tiny import bpe_tokenizer

from dgpo_cli.agent.agent import Agent
from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.workspace import Workspace
from dgpo_cli.engine.scripted import ScriptedEngine, turns_by_question
from dgpo_cli.formats.tags import DEFAULT
from dgpo_cli.models.codec import Codec
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import open_index
from dgpo_cli.viewing.chat import Chat

QUESTIONS = (
    {"id": "1", "question": "who is the mayor of Vesapo?", "golden_answers": ["Mira Holt"], "supporting_ids": ["a"]},
    {
        "id": "2",
        "question": "which weavers town?",
        "golden_answers": ["Tarn"],
        "supporting_titles": ["Tarn", "Nowhere"],
    },
)


def test_build_then_reuse_then_check(dgpo: Callable[..., Any], folder: Path) -> None:
    corpus = write_corpus(folder / "towns.jsonl")
    corpus.write_bytes(corpus.read_bytes() + b"broken\n" * 12)
    built = dgpo("index", "towns.jsonl", "--json")
    result = json.loads(built.out)
    assert (built.status, result["passages"], result["skipped"], result["reused"]) == (0, 5, 12, False)
    assert result["bytes"] == sum(
        p.stat().st_size for p in (folder / "indexes/towns").rglob("*") if p.is_file() and p.name != "manifest.json"
    )
    assert result["seconds"] > 0
    assert "line 6: not JSON" in built.err
    assert built.err.count("skipped line") == 10
    assert "and 2 more" in built.err
    assert Workspace().resolve("index", None).value == "./indexes/towns"

    again = dgpo("index", "towns.jsonl")
    assert (again.status, "used as it is" in again.out) == (0, True)

    write_lines(folder / "questions.jsonl", QUESTIONS)
    checked = dgpo("index", "check", "--questions", "questions.jsonl", "-k", "5,1", "--json")
    quality = json.loads(checked.out)
    assert "remembered from `dgpo index`" in checked.err
    assert quality["recall"] == {"1": 0.75, "5": 0.75}
    assert quality["answer_hit"] == {"1": 1.0, "5": 1.0}
    assert quality["own_words"] == {"1": 1.0, "5": 1.0}
    assert (quality["passages"], quality["questions"], quality["with_gold"]) == (5, 2, 2)
    shown = dgpo("index", "check", "--index", "indexes/towns", "--questions", "questions.jsonl")
    assert "5 passages, whole" in shown.out
    assert "found by their own words: 100.0 % in the first 2, 100.0 % in the first 5 (of 5 passages)" in shown.out
    assert "75.0 %" in shown.out


def mixed_files(folder: Path) -> None:
    """200 files of five kinds, six of them of no use."""
    folder.mkdir()
    for n in range(48):
        (folder / f"letter-{n}.txt").write_text(f"The mayor of town{n}a is Holt{n}. " * 20)
        (folder / f"notes-{n}.md").write_text(f"# Notes {n}\n\n## Rivers\nThe river of town{n}b is Lun{n}.\n")
        page = f"<title>Page {n}</title><script>hidden</script><p>The bridge of town{n}c is old."
        (folder / f"page-{n}.html").write_text(page)
        (folder / f"report-{n}.pdf").write_bytes(pdf(f"The harbour of town{n}d is deep."))
    (folder / "german.txt").write_bytes("Die Brücke von Vesapo".encode("utf-16"))
    (folder / "second.md").write_text("Weavers live in Tarn.")
    (folder / "broken.pdf").write_bytes(pdf("x")[:80])
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 4)
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "table.xlsx").write_bytes(b"PK\3\4")


def test_a_folder_of_mixed_files(dgpo: Callable[..., Any], folder: Path) -> None:
    mixed_files(folder / "notes")
    assert len(list((folder / "notes").iterdir())) == 200
    built = dgpo("index", "notes")
    assert built.status == 0
    account = [line.removeprefix("warning: skipped ") for line in built.err.splitlines() if "skipped" in line]
    assert [line.partition(" (")[0] for line in account] == [
        "binary.txt: binary",
        "broken.pdf: broken PDF",
        "empty.txt: empty",
        "latin.txt: not utf-8",
        "picture.png: unknown kind",
        "table.xlsx: broken XLSX",
    ]
    assert "6 skipped: 1 binary, 1 broken PDF, 1 empty, 1 not utf-8, 1 unknown kind, 1 broken XLSX" in built.out
    retriever = open_index(folder / "indexes" / "notes").retriever
    queries = ["mayor town7a", "river town47b", "bridge town0c", "harbour town12d", "Brücke", "weavers"]
    best = [hits[0].passage for hits in retriever.search(queries, 1)]
    assert [p.id for p in best] == [
        "letter-7.txt#1", "notes-47.md#1", "page-0.html#1", "report-12.pdf#1", "german.txt#1", "second.md#1",
    ]  # fmt: skip
    assert [p.title for p in best[:3]] == ["letter-7", "Notes 47: Rivers", "Page 0"]
    assert "used as it is" in dgpo("index", "notes").out
    refused = dgpo("index", "notes", "--out", "other", "--strict")
    assert "notes: binary.txt: binary" in refused.errors[0]


def test_the_loop_searches_a_folder_and_reads_what_it_finds(dgpo: Callable[..., Any], folder: Path) -> None:
    mixed_files(folder / "notes")
    assert dgpo("index", "notes", "-q").status == 0
    codec = Codec(bpe_tokenizer(), DEFAULT)
    turns = ["<think> look</think><search> mayor of town7a</search>", "<answer> Holt7</answer>"]
    engine = ScriptedEngine(codec, turns_by_question({"mayor": turns}))
    retriever = open_index(folder / "indexes" / "notes").retriever
    talk = Chat(lambda: Agent(engine, codec, retriever, RolloutSettings(temperature=0, wave=1)))
    episode = talk.ask("Who is mayor of town7a?")
    assert episode.answer == "Holt7"
    assert episode.searches[0].hits[0].passage.id == "letter-7.txt#1"
    assert '(Title: "letter-7") The mayor of town7a is Holt7.' in codec.decode(episode.token_ids)


def test_chat_answers_over_a_folder(
    dgpo: Callable[..., Any], folder: Path, offline: Any, searcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 files in one command, then a model of the small world, which has learned to search, asks them."""
    mixed_files(folder / "notes")
    passages = [json.loads(line)["contents"].partition("\n") for line in offline.corpus.read_text().splitlines()]
    told = {}
    for n, (title, _, text) in enumerate(passages[:96]):
        kind, number = ("letter", n) if n < 48 else ("notes", n - 48)
        file = folder / "notes" / f"{kind}-{number}{'.txt' if kind == 'letter' else '.md'}"
        file.write_text(text)
        told[title.strip('"')] = file.name
    assert len(list((folder / "notes").iterdir())) == 200
    built = dgpo("index", "notes")
    assert built.status == 0
    assert "6 skipped: 1 binary, 1 broken PDF, 1 empty, 1 not utf-8, 1 unknown kind, 1 broken XLSX" in built.out
    questions = [q for q in read_questions(offline.questions("train")) if set(q.supporting_titles) <= told.keys()][:8]
    assert questions
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{question.text}\n" for question in questions)))
    spoken = dgpo("chat", "--model", str(searcher), "--json", "--device", "cpu")
    assert "remembered from `dgpo index`" in spoken.err
    answers = json.loads(spoken.out)["answers"]
    assert [answer["question"] for answer in answers] == [question.text for question in questions]
    read = [{hit["title"] for search in answer["searches"] for hit in search["hits"]} for answer in answers]
    assert all(answer["searches"] for answer in answers), "it searched for every question"
    assert sum(bool(found & {Path(file).stem for file in told.values()}) for found in read) >= len(questions) / 2
    assert any(
        found & {Path(told[t]).stem for t in q.supporting_titles} for found, q in zip(read, questions, strict=True)
    )


def test_a_folder_that_holds_its_own_index(dgpo: Callable[..., Any], folder: Path) -> None:
    (folder / "a.txt").write_text("The mayor of Vesapo")
    assert dgpo("index", ".").status == 0
    again = json.loads(dgpo("index", ".", "--json").out)
    assert (again["reused"], again["passages"], again["index"]) == (True, 1, f"indexes/{folder.name}")


def test_a_corpus_named_check_is_reached_as_a_path(dgpo: Callable[..., Any], folder: Path) -> None:
    write_corpus(folder / "check")
    assert dgpo("index", "./check", "--out", "i").status == 0
    assert dgpo("index", "build", "check", "--out", "j").status == 0
    assert json.loads(dgpo("index", "check", "--index", "i", "--json").out)["passages"] == len(TOWNS)


def test_options_before_the_corpus_and_settings(dgpo: Callable[..., Any], folder: Path) -> None:
    write_corpus(folder / "c.jsonl")
    built = dgpo("index", "--retriever", "rank-bm25", "-o", "idf=lucene", "--out", "i", "c.jsonl", "--json")
    settings = {"idf": "lucene", "k1": 1.5, "b": 0.75, "stopwords": "english", "stemmer": "none", "tokenizer": "auto"}
    assert json.loads(built.out)["settings"] == settings


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.jsonl"], "none.jsonl: No such file or directory"),
        (["empty.jsonl"], "empty.jsonl holds no usable passage"),
        (["bad.jsonl", "--strict"], "bad.jsonl: line 1: not JSON"),
        (["c.jsonl", "--retriever", "bm52"], "unknown retriever 'bm52'"),
        (["c.jsonl", "-o", "k9=1"], "has no option 'k9'"),
        (["c.jsonl", "-o", "k1=big"], "k1"),
        (["c.jsonl", "--encoder", "e5"], "--encoder has no effect on bm25"),
        (["c.jsonl", "--retriever", "hybrid", "--encoder", "e5", "-o", "dense=x"], "dense=x is no setting"),
        (["c.jsonl", "--retriever", "hybrid", "-o", "dense.factor=x"], "has no option 'factor'"),
        (["c.jsonl", "--out", "full"], "full exists and is not an index"),
        (["c.jsonl", "--colour"], "--colour"),
        (["check"], "no index given, and none remembered"),
        (["check", "--index", "full"], "full is not an index"),
        (["check", "--questions", "q.jsonl", "-k", "two"], "-k 'two' is not a list of numbers"),
        (["check", "--questions", "q.jsonl", "-k", "0"], "below 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_not_zero(
    dgpo: Callable[..., Any], folder: Path, argv: list[str], message: str
) -> None:
    write_corpus(folder / "c.jsonl")
    write_lines(folder / "q.jsonl", QUESTIONS)
    (folder / "empty.jsonl").touch()
    (folder / "bad.jsonl").write_text("{")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").touch()
    ended = dgpo("index", *argv)
    assert ended.status != 0
    assert len(ended.errors) == 1
    assert message in ended.errors[0]
    assert "Traceback" not in ended.err
    assert not (folder / "indexes").exists() or not any((folder / "indexes").iterdir())


SHARED = Path(os.environ.get("DGPO_SHARED_DATA", ""))
# Recall at 2 and 5 in percent, as published with these files.
SHARED_RECALL = {
    "2wikimultihopqa": (54.4, 64.9),
    "musique": (33.1, 43.6),
    "hotpotqa": (53.7, 70.0),
    "popqa_hipporag2": (27.0, 47.0),
}


@pytest.mark.skipif(not os.environ.get("DGPO_SHARED_DATA"), reason="DGPO_SHARED_DATA names no folder of real corpora")
@pytest.mark.parametrize("name", [*SHARED_RECALL, "wiki18mini"])
def test_real_corpora(dgpo: Callable[..., Any], name: str) -> None:
    assert dgpo("index", str(SHARED / f"corpus_{name}.jsonl.gz"), "--strict").status == 0
    if name in SHARED_RECALL:
        checked = dgpo("index", "check", "--questions", str(SHARED / f"{name}.jsonl.gz"), "-k", "2,5", "--json")
        recall = json.loads(checked.out)["recall"]
        assert [100 * recall["2"], 100 * recall["5"]] == pytest.approx(SHARED_RECALL[name], abs=2.0)
