"""The text that a chat template puts around a user's message, and around a tool's message between two turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from dgpo_cli.errors import ModelError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.chat_template import HINT, conversation_text, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT = "DGPO-PROMPT-GOES-HERE"
_TURN = "DGPO-TURN-GOES-HERE"
_RESULTS = 'DGPO "RESULTS" GO\nHERE'  # holds characters that a template that writes JSON would escape
_WITHOUT = "take the format tags, which needs no chat template, or another model"


@dataclass(frozen=True, slots=True)
class Frame:
    """The text around a message. `head` and `tail` may hold special tokens.

    `before` and `after` are ordinary text next to the message: a token may hold the end of one and the beginning of the
    other, so they are encoded together with it.
    """

    head: str = ""
    before: str = ""
    after: str = ""
    tail: str = ""
    strips: bool = False  # the template drops blanks around the message

    @classmethod
    def around(cls, head: str, tail: str, special: Sequence[str], *, strips: bool = False) -> Frame:
        pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        start = max((found.end() for found in pattern.finditer(head)), default=0)
        first = pattern.search(tail)
        stop = len(tail) if first is None else first.start()
        return cls(head[:start], head[start:], tail[:stop], tail[stop:], strips)


class Frames:
    """The frames of a tokenizer's chat template; they raise ModelError where it has none of this kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> None:
        self._tokenizer, self._protocol = tokenizer, protocol
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

    @cached_property
    def prompt(self) -> Frame:
        """The frame of the user's message, up to the position where the model writes."""
        text = self._rendered([{"role": "user", "content": f"{_PROMPT}\n"}])
        if text.count(_PROMPT) != 1:
            written = f"writes the user's message {text.count(_PROMPT)} times"
            raise ModelError(f"the tokenizer's chat template {written}, not once", hint=HINT)
        strips = f"{_PROMPT}\n" not in text
        head, _, tail = text.partition(_PROMPT if strips else f"{_PROMPT}\n")
        return Frame.around(head, tail, self._special, strips=strips)

    @cached_property
    def results(self) -> Frame:
        """The frame of a tool's message, from the end of one turn of the model to the start of the next."""
        text = self._rendered(
            [
                {"role": "user", "content": _PROMPT},
                {"role": "assistant", "content": _TURN},
                {"role": "tool", "name": "search", "content": _RESULTS},
            ]
        )
        _, turn, rest = text.partition(_TURN)
        head, results, tail = rest.partition(_RESULTS)
        if not (turn and results):
            raise ModelError("the tokenizer's chat template does not show what a tool returns", hint=_WITHOUT)
        if not head.startswith(tuple(self._special)):
            raise ModelError("the tokenizer's chat template ends a turn with no special token", hint=_WITHOUT)
        return Frame.around(head, tail, self._special)

    @cached_property
    def _system(self) -> list[dict[str, str]]:
        """A system message about the tools, if the template does not mention them."""
        form, asked = self._protocol.agent_format, [{"role": "user", "content": _PROMPT}]
        if not form.tools or self._text(asked, form.tools) != self._text(asked, ()):
            return []
        return [{"role": "system", "content": form.tools_text}]

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        form = self._protocol.agent_format
        text = self._text([*self._system, *messages], form.tools)
        if any(message["content"] not in text for message in self._system):
            raise ModelError("the tokenizer's chat template shows neither tools nor a system message", hint=_WITHOUT)
        return text

    def _text(self, messages: list[dict[str, str]], tools: Sequence[Mapping[str, Any]]) -> str:
        return rendered(lambda: self._conversation(messages, tools))

    def _conversation(self, messages: list[dict[str, str]], given: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as the template renders it, on the protocol's date if it has one."""
        tokenizer, date = self._tokenizer, self._protocol.date
        return conversation_text(
            tokenizer.get_chat_template(tools=cast(Any, given or None)),
            messages,
            tokenizer.special_tokens_map,
            tools=given or None,
            now=None if date is None else datetime.fromisoformat(date),
        )
