"""A question that was made and has yet to prove itself, and what may become of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dgpo_cli.core.text import text_key
from dgpo_cli.core.types import Passage, Question, question_to_json
from dgpo_cli.make_questions.draw import Drawn, QuestionSide, document_of, is_of_folder
from dgpo_cli.training.teacher.gold import query

QA_SET = "made"  # also its name for `dgpo eval --bench`


class MadeKind(StrEnum):
    """How a question was made."""

    ONE_HOP = "one-hop"  # by a teacher, as is the next
    TWO_HOP = "two-hop"
    CLOZE = "cloze"  # a word of a passage's sentence is left out
    TITLE = "title"  # what the passage is about is left out
    BRIDGE = "bridge"  # of two sentences; the second one has a name that the first one tells
    WHICH_OF = "which-of"


class Fate(StrEnum):
    """Why a question was kept or fell, in the order in which it is looked at; the words are for the table."""

    NO_NAME = "nothing in its sentence to ask for"
    NO_PARTNER = "no passage of another document shares a name"
    TOO_LONG = "the passages are too long for the teacher"
    UNWRITTEN = "the teacher wrote no question with an answer"
    NOT_IN_PASSAGE = "the answer is not in the passage"
    LONG_ANSWER = "the answer is long, or yes or no"
    HOLDS_ANSWER = "the question holds its answer"
    NAMES_PASSAGE = "the question speaks of the passage"
    NAMES_LINK = "the question names what it should lead to"
    NOT_FOUND = "no query finds the passages"
    UNREADABLE = "the teacher does not answer it with the passages"
    KNOWN = "the teacher answers it without the passages"
    ONE_IS_ENOUGH = "the teacher answers it with one of the two"
    DUPLICATE = "asked before"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class NameLink:
    """Another document's passage that has a name in common with the drawn one."""

    name: str
    passage: Passage
    is_title: bool  # the name is what that passage is about
    is_code: bool = False  # the name is of a command, a setting or the like

    @property
    def leads(self) -> bool:
        """Whether searching for the name leads to the passage and not to anything that happens to be named too."""
        return self.is_title or self.is_code


@dataclass(frozen=True, slots=True)
class QuestionTask:
    """One question to be made: about a drawn passage, or about it and a linked one."""

    drawn: Drawn
    hops: int
    link: NameLink | None = None  # of two hops; None where none was found

    @property
    def key(self) -> str:
        return f"{self.drawn.row}/{self.hops}"

    @property
    def gold(self) -> tuple[Passage, ...]:
        """The passages in the order in which they are to be read."""
        return (self.drawn.passage,) if self.link is None else (self.drawn.passage, self.link.passage)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question before it is judged."""

    kind: MadeKind
    text: str
    answer: str
    gold: tuple[Passage, ...]  # in the order in which they are to be read
    sentence: str = ""  # of a gold passage; it holds the answer
    hidden: str = ""  # a name that the question leads to and must not say

    def question(self, side: QuestionSide) -> Question:
        ids = [passage.id for passage in self.gold]
        identity = hashlib.sha256("\x1f".join([text_key(self.text), *ids]).encode()).hexdigest()[:16]
        titles = tuple(passage.title for passage in self.gold)
        hops = 1 if self.kind in (MadeKind.ONE_HOP, MadeKind.CLOZE, MadeKind.TITLE) else 2
        return Question(identity, self.text, (self.answer,), QA_SET, hops, titles, tuple(ids))

    def to_json(self, side: QuestionSide) -> dict[str, Any]:
        """A line of a question file; `metadata` tells the sentence that holds the answer."""
        metadata: Mapping[str, str] = {"kind": self.kind, "sentence": self.sentence, "split": side}
        return question_to_json(self.question(side)) | {"metadata": dict(metadata)}


def subject(passage: Passage) -> str:
    """The subject of a passage: its title without brackets behind it and without the name of a section."""
    title = f"{text_key(passage.title)} ".partition(" - ")[0].strip()
    return query(title)


def topics(passage: Passage) -> tuple[str, ...]:
    """The names of a passage's subject: in a folder the heading of a section has one of its own."""
    heading = passage.title.rpartition(": ")[2] if is_of_folder(passage) else ""
    return (subject(passage), heading) if heading else (subject(passage),)


def same_document(a: Passage, b: Passage) -> bool:
    return document_of(a) == document_of(b)
