"""Prompts for a teacher, and the parsing of its replies.

Every request is one user message and the beginning of the reply. The answer is chosen before the question is asked for,
which small models can do; only where a passage holds nothing to choose does the teacher choose, after an example.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dgpo_cli.core.types import Passage
from dgpo_cli.make_questions.candidate import QuestionTask

QUESTION, ANSWER = "Question:", "Answer:"
_REPLY = re.compile(rf"\s*(?P<question>[^\n]+?)\s*(?:\n\s*)*{ANSWER}\s*(?P<said>[^\n]+)", re.IGNORECASE)
_AROUND = " \t\"'“”`*"

_ONE_HOP = """\
Write one question about the passage and its answer. The answer is a name, a date, a number or a few words, copied \
from the passage. Whoever is asked does not have the passage: say by name what the question is about.

Passage (Ona River): The Ona rises in the Kelda hills and flows through Vesapo. Its length is 84 km.
Question: How long is the Ona River?
Answer: 84 km

Passage ({title}): {text}
"""
_TWO_HOP = """\
Write one question that can only be answered with both passages, and its answer. They have "{name}" in common. The \
question does not say "{name}"; it says what passage 1 tells about it, and asks for what passage 2 tells. The answer \
is a name, a date, a number or a few words, copied from passage 2. Whoever is asked does not have the passages.

Passage 1 (Ona River): The Ona rises in the Kelda hills and flows through Vesapo.
Passage 2 (Vesapo): Vesapo is a town of weavers. Its mayor is Mira Holt.
Question: Who is the mayor of the town through which the Ona River flows?
Answer: Mira Holt

Passage 1 ({title}): {text}
Passage 2 ({second_title}): {second_text}
"""
_ONE_HOP_GIVEN = """\
{title}: {text}

Write a short question about {title} with the answer "{answer}". Do not say the answer in the question."""
_TWO_HOP_GIVEN = """\
{title}: {text}

{second_title}: {second_text}

Both speak of "{name}". Write a question with the answer "{answer}". Do not say "{name}" in the question, but what the \
first text says about it. Do not say the answer either."""
_READING = "{passages}Answer the question in as few words as possible.\n\nQuestion: {question}"
_HOLE = re.compile(r"\{(\w+)\}")


def asking_for_question(task: QuestionTask, answer: str | None) -> str:
    """The request for a question about a task's passages with an answer; None lets the teacher choose one."""
    passage = task.drawn.passage
    values = {"title": passage.title, "text": _line(passage), "answer": answer or ""}
    if task.link is None:
        return _filled(_ONE_HOP if answer is None else _ONE_HOP_GIVEN, values)
    second = task.link.passage
    values |= {"name": task.link.name, "second_title": second.title, "second_text": _line(second)}
    return _filled(_TWO_HOP if answer is None else _TWO_HOP_GIVEN, values)


def asking(question: str, passages: Sequence[Passage]) -> str:
    """The request for an answer, with passages or without any."""
    shown = "".join(f"Passage ({passage.title}): {_line(passage)}\n\n" for passage in passages)
    return _filled(_READING, {"passages": shown, "question": question})


def question_and_answer(reply: str) -> tuple[str, str] | None:
    """Question and answer in a reply that continues after QUESTION; None where it lacks one."""
    found = _REPLY.match(reply)
    if found is None:
        return None
    question, answer = found["question"].strip(_AROUND), found["said"].strip(_AROUND)
    answer = answer.removesuffix(".") if not re.search(r"\.\S*\.$|\b\w\.$", answer) else answer
    return (question, answer) if question.endswith(("?", "？")) and answer else None


def question_in(reply: str) -> str | None:
    """The question at the beginning of a reply that goes on after QUESTION; None where there is none."""
    line = answer_in(reply)
    end = min((place for mark in ("?", "？") if (place := line.find(mark)) >= 0), default=-1)
    return line[: end + 1].strip(_AROUND) if end > 0 else None


def answer_in(reply: str) -> str:
    """The first line of a reply that goes on after ANSWER."""
    return next((line.strip(_AROUND) for line in reply.splitlines() if line.strip()), "")


def _line(passage: Passage) -> str:
    return " ".join(passage.text.split())


def _filled(template: str, values: dict[str, str]) -> str:
    """Every hole of the template filled once; what looks like a hole in a passage stays as it is."""
    return _HOLE.sub(lambda hole: values[hole[1]], template)
