"""Rows of the sets' own files under FlashRAG's names: NQ-open, TriviaQA, HotpotQA, 2WikiMultiHopQA, MuSiQue and alike.

A row that has `golden_answers` is FlashRAG's and stays as it is. What is of no known form stays too, and is refused for
what it is when it is read as a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ANSWERS = ("answers", "answer", "Answer")
_IDS = ("_id", "question_id", "QuestionId")


def under_flashrags_names(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same row with `id`, `question`, `golden_answers`, `unanswerable` and `supporting_titles` where it has them
    under other names.
    """
    if "golden_answers" in row:
        return row
    found = dict(row)
    for name, others in (("id", _IDS), ("question", ("Question",))):
        known = next((other for other in others if other in row), None)
        if name not in row and known is not None:
            found[name] = row[known]
    given = next((name for name in _ANSWERS if name in row), None)
    told = row.get("answerable")
    if told not in (None, True):  # MuSiQue's; the answer beside it is that of the question it was made from
        found["unanswerable"] = True if told is False else told
    elif given is not None:
        found["golden_answers"] = _with_aliases(_texts(row[given]), row.get("answer_aliases"))
    titles = _titles(row)
    if titles and "supporting_titles" not in row:
        found["supporting_titles"] = titles
    return found


def _texts(given: Any) -> Any:
    """One answer, a list of them, SQuAD's record of texts, or TriviaQA's of a value and its aliases."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Mapping):
        return given
    if "text" in given:
        return _texts(given["text"])
    named = {str(name).lower(): value for name, value in given.items()}
    return _with_aliases(_texts(named.get("value")), named.get("aliases"))


def _with_aliases(answers: Any, aliases: Any) -> Any:
    if not isinstance(answers, list) or not isinstance(aliases, list):
        return answers
    return _once([*answers, *(alias for alias in aliases if alias != "")])


def _titles(row: Mapping[str, Any]) -> list[Any]:
    """Of HotpotQA's supporting facts, which are pairs of title and sentence, or of MuSiQue's supporting paragraphs."""
    facts, paragraphs = row.get("supporting_facts"), row.get("paragraphs")
    titles: Sequence[Any] = ()
    if isinstance(facts, Mapping) and isinstance(facts.get("title"), list):  # as the hub has it
        titles = facts["title"]
    elif isinstance(facts, list):
        titles = [fact[0] for fact in facts if isinstance(fact, list) and fact]
    elif isinstance(paragraphs, list):
        told = (one for one in paragraphs if isinstance(one, Mapping) and one.get("is_supporting"))
        titles = [one["title"] for one in told if "title" in one]
    return _once(titles)


def _once(values: Sequence[Any]) -> list[Any]:
    """Each text once; what holds anything else is left for the reader of questions to refuse."""
    return list(dict.fromkeys(values)) if all(isinstance(value, str) for value in values) else list(values)
