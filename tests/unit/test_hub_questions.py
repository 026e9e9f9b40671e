"""Questions of a hub's data set by the names of its columns; a local folder stands for the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.retrieval_corpora import write_lines

from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.abstention import is_unanswerable
from dgpo_cli.qa_sets.load import load_questions, training_set


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def repository(folder: Path, *rows: dict[str, Any]) -> str:
    folder.mkdir()
    write_lines(folder / "train.jsonl", rows)
    return f"hf:{folder}"


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    place = repository(
        tmp_path / "faq",
        {"key": 7, "prompt": "Who?", "reply": {"text": ["Mira Holt", "M. Holt"]}, "question": "no"},
        {"key": 8, "prompt": "Where?", "reply": {"text": ["Vesapo"]}, "question": "no"},
    )
    first, second = training_set(f"{place}:train?question=prompt&answers=reply.text&id=key")
    assert (first.id, first.text, first.answers, first.qa_set) == ("7", "Who?", ("Mira Holt", "M. Holt"), "faq")
    assert second.answers == ("Vesapo",)
    assert load_questions(f"{place}?question=prompt&answers=reply.text", limit=1)[0].id != "7", "made from its text"


@pytest.mark.parametrize("mapping", ["", "?answers=answers.text"])
def test_squads_record_of_answers_without_any_is_unanswerable(tmp_path: Path, mapping: str) -> None:
    place = repository(
        tmp_path / "squad_v2",
        {"id": "a", "question": "Where?", "answers": {"text": ["Vesapo"], "answer_start": [3]}},
        {"id": "b", "question": "Who?", "answers": {"text": [], "answer_start": []}},
    )
    answered, other = load_questions(place + mapping)
    assert answered.answers == ("Vesapo",) and is_unanswerable(other)


def test_a_column_may_say_that_a_question_is_unanswerable(tmp_path: Path) -> None:
    answered = {"question": "Where?", "answers": ["Oslo"], "none": False}
    place = repository(tmp_path / "r", answered, {"question": "Who?", "answers": [], "none": True})
    assert [is_unanswerable(q) for q in load_questions(f"{place}?unanswerable=none")] == [False, True]
    with pytest.raises(InputError, match="row 2: not a question: `golden_answers` is a list of 0"):
        load_questions(place)


@pytest.mark.parametrize("name", ["golden_answers", "answers", "answer"])
def test_usual_names_need_no_mapping(tmp_path: Path, name: str) -> None:
    value: Any = "Vesapo" if name == "answer" else ["Vesapo"]
    place = repository(tmp_path / "r", {"id": "a", "question": "Where?", name: value, "supporting_titles": ["Lun"]})
    (found,) = load_questions(place)
    assert (found.id, found.answers, found.supporting_titles) == ("a", ("Vesapo",), ("Lun",))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    place = repository(tmp_path / "r", {"id": "a", "question": "Where?", "answer": "Vesapo"}, {"id": "b", "answer": ""})
    with pytest.raises(InputError, match=r"r, row 2: not a question: .golden_answers\[0\]. is ..,"):
        load_questions(place)
    with pytest.raises(InputError, match="has no column 'reply', it has id, question, answer"):
        load_questions(f"{place}?answers=reply")
    with pytest.raises(ConfigError, match="there is no 'query' to map"):
        load_questions(f"{place}?query=question")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        load_questions("hf:nobody/nothing:train")
