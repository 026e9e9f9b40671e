"""Questions that carry their paragraphs: the forms of the sets' own files, and what is none of them."""

import json
from pathlib import Path

import pytest

from dgpo_cli.errors import InputError
from dgpo_cli.qa_sets import paragraphs
from dgpo_cli.qa_sets.real import files

HOTPOT = {
    "_id": "a1", "question": "Who was first?", "answer": "Ada", "type": "bridge",
    "supporting_facts": [["Ada", 0], ["Byron", 1], ["Ada", 1]],
    "context": [
        ["Ada", ["Ada wrote.", " It was a program."]], ["Babbage", ["He built."]], ["Byron", ["A poet.", " A father."]],
    ],
}  # fmt: skip
TITLES, FIRST = ["Ada", "Byron"], '"Ada"\nAda wrote. It was a program.'


def record_of(pairs: list) -> dict:
    return {"title": [title for title, _ in pairs], "sentences": [sentences for _, sentences in pairs]}


def as_on_the_hub(row: dict) -> dict:
    facts = row["supporting_facts"]
    named = {"title": [title for title, _ in facts], "sent_id": [place for _, place in facts]}
    return row | {"id": row["_id"], "supporting_facts": named, "context": record_of(row["context"])}


def as_flashrag(row: dict) -> dict:
    context = record_of(row["context"])
    held = {"supporting_facts": as_on_the_hub(row)["supporting_facts"]}
    held["context"] = {"title": context["title"], "content": context["sentences"]}
    return {"id": row["_id"], "question": row["question"], "golden_answers": [row["answer"]], "metadata": held}


def as_musique(row: dict) -> dict:
    gold = {title for title, _ in row["supporting_facts"]}
    told = [
        {"idx": i, "title": title, "paragraph_text": "".join(sentences), "is_supporting": title in gold}
        for i, (title, sentences) in enumerate(row["context"])
    ]
    return {"id": row["_id"], "question": row["question"], "answer": row["answer"], "answer_aliases": [],
            "answerable": True, "paragraphs": told}  # fmt: skip


def write(path: Path, rows: list[dict]) -> Path:
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize("form", [dict, as_on_the_hub, as_flashrag, as_musique])
def test_every_form_is_the_same_question_over_the_same_passages(tmp_path, form, ending):
    other = HOTPOT | {"_id": "a2", "question": "Whose father?", "context": HOTPOT["context"][::-1]}
    path = write(tmp_path / f"hotpotqa{ending}", [form(HOTPOT), form(other)])
    assert paragraphs.are_carried(path)
    questions, passages = paragraphs.read(path, "hotpotqa")
    assert [p["id"] for p in passages] == ["0", "1", "2"] and passages[0]["contents"] == FIRST
    first, second = questions
    assert (first.id, first.qa_set, first.answers) == ("a1", "hotpotqa", ("Ada",))
    assert (list(first.supporting_titles), list(first.supporting_ids)) == (TITLES, ["0", "2"])
    assert (list(second.supporting_titles), list(second.supporting_ids)) == (TITLES[::-1], ["2", "0"])
    assert files(tmp_path) == {"hotpotqa": (path, None)}


def test_sentences_without_spaces_of_their_own_get_one(tmp_path):
    """As in 2WikiMultiHopQA."""
    row = HOTPOT | {"context": [["Ada", ["Ada wrote.", "It was a program."]]]}
    assert paragraphs.read(write(tmp_path / "q.json", [row]), "q")[1] == [{"id": "0", "contents": FIRST}]


def test_two_passages_of_one_title_are_two(tmp_path):
    """As in MuSiQue: only the one that supports is gold."""
    row = as_musique(HOTPOT)
    row["paragraphs"].append({"idx": 3, "title": "Ada", "paragraph_text": "A town.", "is_supporting": False})
    questions, passages = paragraphs.read(write(tmp_path / "musique.jsonl", [row]), "musique")
    assert len(passages) == 4 and list(questions[0].supporting_ids) == ["0", "2"]


@pytest.mark.parametrize(
    "change",
    [
        {"context": [["Ada"]]},
        {"context": [["Ada", "a text"]]},
        {"context": [["Ada", [1]]]},
        {"context": [[None, ["x"]]]},
        {"context": 3},
        {"context": None},
        {"context": {"title": ["Ada"], "sentences": []}},
        {"context": {"title": ["Ada"]}},
        {"context": None, "paragraphs": 7},
        {"supporting_facts": 3, "context": [["Ada", 2]]},
    ],
)
def test_what_is_no_paragraph_is_one_line_with_its_place(tmp_path, change):
    row = {name: value for name, value in (HOTPOT | change).items() if value is not None}
    path = write(tmp_path / "q.jsonl", [HOTPOT, row | {"_id": "b"}])
    with pytest.raises(InputError) as told:
        paragraphs.read(path, "q")
    assert f"{path}:2: its paragraphs cannot be read" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("part", [{"title": "x"}, {"title": "x", "text": 1, "is_supporting": True}, 5, None])
def test_what_is_no_paragraph_of_musique_either(tmp_path, part):
    path = write(tmp_path / "q.jsonl", [as_musique(HOTPOT) | {"paragraphs": [part]}])
    with pytest.raises(InputError, match="its paragraphs cannot be read"):
        paragraphs.read(path, "q")


def test_questions_without_paragraphs_need_a_corpus(tmp_path):
    path = write(tmp_path / "hotpotqa.jsonl", [{"id": "1", "question": "Who?", "golden_answers": ["A"]}])
    assert not paragraphs.are_carried(path)
    with pytest.raises(InputError, match="holds no questions with their passages") as told:
        files(tmp_path)
    assert "corpus_NAME.jsonl" in told.value.hint and "NAME.json as HotpotQA" in told.value.hint
