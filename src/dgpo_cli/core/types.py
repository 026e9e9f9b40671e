"""Records that flow between layers. Plain Python: importing this module never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from dgpo_cli.core import schema
from dgpo_cli.core.text import is_empty_answer, is_judgement, text_key


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable unit. `contents` is the title line followed by the text, as Search-R1 and FlashRAG store it."""

    id: str
    contents: str

    @classmethod
    def from_title(cls, id: str, title: str, text: str) -> Passage:
        return cls(id, f'"{title}"\n{text}')

    @property
    def title(self) -> str:
        """The first line without the blanks and the quotes that the corpus format puts around it."""
        line = self._lines()[0].strip()
        return line[1:-1].strip() if len(line) >= 2 and line[0] == line[-1] == '"' else line

    @property
    def text(self) -> str:
        """The text after the first line."""
        return self._lines()[1]

    def _lines(self) -> tuple[str, str]:
        """The first line and the rest, with line ends of any system: \\n, \\r\\n or \\r."""
        line, _, rest = self.contents.partition("\n")
        if "\r" not in line:
            return line, rest
        line, _, rest = self.contents.partition("\r")
        return line, rest.removeprefix("\n")


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]  # every accepted string
    qa_set: str
    hops: int | None = None
    supporting_titles: tuple[str, ...] = ()
    supporting_ids: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identity among the questions of several QA sets."""
        return f"{self.qa_set}/{self.id}"

    @property
    def is_judged(self) -> bool:
        """Whether it is answered by yes or no: every accepted answer is one, apart from those that say nothing."""
        told = [answer for answer in self.answers if not is_empty_answer(answer)]
        return bool(told) and all(map(is_judgement, told))

    @property
    def gold_keys(self) -> frozenset[str]:
        """Keys of its gold passages: ids if the question names any, else titles; compare with `key_of`."""
        return frozenset(map(text_key, self.supporting_ids or self.supporting_titles))

    def key_of(self, passage: Passage) -> str:
        return text_key(passage.id if self.supporting_ids else passage.title)


@dataclass(frozen=True, slots=True)
class Hit:
    passage: Passage
    score: float
    rank: int  # from 1


@dataclass(frozen=True, slots=True)
class SearchCall:
    query: str
    hits: tuple[Hit, ...]
    seconds: float = 0.0
    error: str | None = None


class StopReason(StrEnum):
    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    SEARCH_FAILED = "search_failed"
    REPEATED_TURN = "repeated_turn"  # a turn without an action was written again after the correction
    LOOP = "loop"  # a turn repeated a few tokens again and again


@dataclass(frozen=True, slots=True)
class Score:
    """`total` is trained on, `parts` are logged, `correct` opens and closes gates."""

    total: float
    correct: bool
    parts: Mapping[str, float] = field(default_factory=dict)


Action = Literal["search", "answer"]


QUESTION_EXTRAS = {
    "hops": schema.maybe(schema.whole(0)),
    "supporting_titles": schema.maybe(schema.list_of(schema.text())),
    "supporting_ids": schema.maybe(schema.list_of(schema.either(schema.text(), schema.whole()))),
}
QUESTION = schema.record(
    {
        "id": schema.either(schema.text(empty=False), schema.whole()),
        "question": schema.text(empty=False),
        "golden_answers": schema.list_of(schema.text()),
        "qa_set": schema.text(),
    },
    QUESTION_EXTRAS,
)


def question_to_json(question: Question) -> dict[str, Any]:
    """FlashRAG's field names, so that a written file is a question file again."""
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
        "qa_set": question.qa_set,
        "hops": question.hops,
        "supporting_titles": list(question.supporting_titles),
        "supporting_ids": list(question.supporting_ids),
    }


def question_from_json(record: Mapping[str, Any], qa_set: str | None = None) -> Question:
    return Question(
        id=str(record["id"]),
        text=record["question"],
        answers=tuple(record["golden_answers"]),
        qa_set=qa_set if qa_set is not None else record["qa_set"],
        hops=record.get("hops"),
        supporting_titles=tuple(record.get("supporting_titles") or ()),
        supporting_ids=tuple(str(i) for i in record.get("supporting_ids") or ()),
    )
