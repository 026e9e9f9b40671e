"""Files of demonstrations: how a person or another program answered questions by searching, step by step.

One JSON object a line: {"id", "question", "golden_answers", "steps": [{"think", "search"}, ..., {"think", "answer"}]};
docs/formats.md has the form in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgpo_cli.core import schema
from dgpo_cli.core.records import read_jsonl
from dgpo_cli.core.types import Question
from dgpo_cli.errors import InputError
from dgpo_cli.formats.registry import FORMATS, get
from dgpo_cli.qa_sets.load import question_of

FORM = '{"id", "question", "golden_answers", "steps": [{"think", "search"}, {"think", "answer"}]}'
_STEP = schema.record(
    {},
    {"think": schema.text(), "search": schema.text(empty=False), "answer": schema.text(empty=False)},
    other=None,
)
_DEMONSTRATION = schema.record(
    {"steps": schema.list_of(_STEP, least=1), "question": schema.ANYTHING},
    dict.fromkeys(
        ("golden_answers", "id", "hops", "supporting_titles", "supporting_ids", "metadata", "unanswerable"),
        schema.ANYTHING,
    )
    | {"qa_set": schema.maybe(schema.text())},
    other=None,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One turn: a thought, which may be empty, and a query or the answer."""

    think: str
    action: Literal["search", "answer"]
    content: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question and the steps that answer it."""

    question: Question
    steps: tuple[Step, ...]
    line: int  # of its file


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Raises InputError naming file and line; an id that occurs twice is an error too: records are kept by id."""
    found: list[Demonstration] = []
    lines: dict[str, int] = {}
    for line, row in read_jsonl(path):
        try:
            schema.require(row, _DEMONSTRATION)
            question = question_of(row, row.get("qa_set") or "demonstrations")
            steps = _steps(row["steps"])
        except ValueError as error:
            raise InputError(f"{path}:{line}: not a demonstration: {error}", hint=f"write lines like {FORM}") from error
        if question.key in lines:
            known = f"id {question.id!r}" if "id" in row else "the question, which has no id,"
            raise InputError(
                f"{path}:{line}: {known} is also on line {lines[question.key]}",
                hint="give every demonstration its own id",
            )
        lines[question.key] = line
        found.append(Demonstration(question, steps, line))
    if not found:
        raise InputError(f"{path} holds no demonstration", hint=f"write lines like {FORM}")
    return found


def _steps(given: Sequence[Mapping[str, str]]) -> tuple[Step, ...]:
    """Raises ValueError, saying what is wrong."""
    steps = tuple(_step(entry, number) for number, entry in enumerate(given, start=1))
    if early := [number for number, step in enumerate(steps[:-1], start=1) if step.action == "answer"]:
        raise ValueError(f"step {early[0]} of {len(steps)} answers; only the last one may")
    if steps[-1].action != "answer":
        raise ValueError(f"step {len(steps)}, the last one, does not answer")
    return steps


def _step(fields: Mapping[str, str], number: int) -> Step:
    actions: list[Literal["search", "answer"]] = [name for name in ("search", "answer") if name in fields]
    if len(actions) != 1:
        raise ValueError(f"step {number} has {'both search and' if actions else 'neither search nor'} answer")
    texts = {"think": fields.get("think", ""), actions[0]: fields[actions[0]]}
    for name, text in texts.items():
        if any(get(form).escape(text)[1] for form in FORMATS):
            raise ValueError(f"{name} of step {number} holds one of the agent's tags, which are added here")
    return Step(texts["think"].strip(), actions[0], texts[actions[0]].strip())
