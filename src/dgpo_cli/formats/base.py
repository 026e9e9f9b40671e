"""The interface of an agent's text format: prompt, stops, parsing of a turn, rendering of search results.

A `Format` is behaviour without state; its texts (prompt, results, correction) are a `Protocol`,
which is recorded with every model and every trajectory file and names its format. To add a format: a subclass in a file
of this package, a line in `registry`, and `tests/contract/test_formats.py` holds it to what follows.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from dgpo_cli.core.disguises import look_alike
from dgpo_cli.core.trajectory import WrittenTurn
from dgpo_cli.core.types import Action, Passage
from dgpo_cli.formats.stream import Kind, TagStream
from dgpo_cli.formats.usage import of_tags

Mode = Literal["direct", "think"]
"""How a question is asked together with its passages: for the answer alone, or with room to think."""

_RESULT = re.compile(r'Doc \d+\(Title: "(?P<title>.*?)"\) (?P<text>.*?)(?=\nDoc \d+\(Title: |\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One generated turn, parsed. `kept` is the text up to and including the stop that ended the turn."""

    kept: str
    action: Action | None
    content: str  # the query or the answer, empty without an action
    thought: bool = False  # it begins with a thought
    alone: bool = False  # it is one thought at most and then one action, and nothing else
    answer_at: int | None = None  # place in `kept` of the answer that `content` is; None where it is none

    def at(self, start: int, stop: int) -> WrittenTurn:
        """As a trajectory keeps it: tokens [start, stop)."""
        return WrittenTurn(start, stop, self.action, self.content, self.thought, self.alone)


class Format(ABC):
    """One format. Its markers are tags: `<name>` and `</name>` for each of the names in `kinds`."""

    kinds: ClassVar[Mapping[str, Kind]]  # by name of a tag, the kind of the text between the tags
    outside: ClassVar[Kind | None] = None  # kind of the text outside all tags
    in_messages: ClassVar[bool] = False  # observations are messages of their own
    texts: ClassVar[Mapping[str, str]]  # `name`, `prompt`, `observation`, `correction`: for a model trained with none
    tools: ClassVar[Sequence[Mapping[str, Any]]] = ()  # for the chat template, as JSON schemas

    @abstractmethod
    def parse(self, text: str, *, ended: bool) -> Turn:
        """Parse a turn. `ended`: the model ended it (a stop or an end-of-text token), not its token limit.

        Takes time linear in the text.
        """

    @abstractmethod
    def _write(self, think: str, action: Action, content: str) -> str: ...

    @abstractmethod
    def reading_prompt(self, mode: Mode) -> str:
        """A prompt with {question} that asks to answer from passages that follow."""

    @abstractmethod
    def begun(self, mode: Mode) -> str:
        """The beginning of the answering turn that is written for the model in a mode; may be empty."""

    @abstractmethod
    def instructs(self, prompt: str) -> bool:
        """Whether a prompt says how to answer; one of a model that learned it by training may be the question alone."""

    @property
    def tools_text(self) -> str:
        """A system message that describes the tools, for chat templates that do not."""
        return ""

    @property
    def usage(self) -> str:
        """A Python program for a model card, with plain transformers; this one is for results that stand in tags."""
        tag = {kind: name for name, kind in self.kinds.items()}
        return of_tags(self.names, tag["search"], tag["answer"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @cached_property
    def closes(self) -> Mapping[str, str]:
        """By the tag that closes a query or an answer, the one that opens it."""
        return {f"</{name}>": f"<{name}>" for name, kind in self.kinds.items() if kind in ("search", "answer")}

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """A turn ends at the first of them, or with the model's end-of-text token."""
        return tuple(self.closes)

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """The tags, as they are written."""
        return tuple(tag for name in self.names for tag in (f"<{name}>", f"</{name}>"))

    @cached_property
    def _look_alike(self) -> re.Pattern[str]:
        return look_alike(self.names)

    def escape(self, text: str) -> tuple[str, int]:
        """Escape look-alikes of the markers as visible text (`&lt;...`). Returns the text and their number.

        Passages and questions are untrusted: a marker in them must not end the results or act as the model's own.
        """
        return self._look_alike.subn("&lt;", text)

    def write(self, think: str, action: Action, content: str) -> str:
        """A turn that `parse` reads as exactly this action; markers in the texts are escaped. `think` may be empty."""
        return self._write(self.escape(think)[0], action, self.escape(content)[0])

    def render_results(self, passages: Sequence[Passage]) -> str:
        """Passages as Search-R1 prints them: `Doc 1(Title: <first line>) <rest>`, one after the other."""
        lines = []
        for rank, passage in enumerate(passages, start=1):
            title, _, text = passage.contents.partition("\n")
            lines.append(f"Doc {rank}(Title: {title}) {text}\n")
        return "".join(lines).strip()

    def passages_in(self, results: str) -> list[Passage]:
        """The passages in rendered results, cut as they are there."""
        return [Passage.from_title("", found["title"], found["text"].strip()) for found in _RESULT.finditer(results)]

    def stream(self) -> TagStream:
        """Splits streamed text into pieces for colouring."""
        kinds = {tag: self.kinds[name] for name in self.names for tag in (f"<{name}>", f"</{name}>")}
        return TagStream(kinds, self.outside)
