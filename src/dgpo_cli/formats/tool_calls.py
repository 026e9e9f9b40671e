"""Native tool calls as JSON (Qwen2.5, Qwen3, SmolLM2): a search is a call, its results are the message of a tool.

A turn asks with `<tool_call>{"name": "search", "arguments": {"query": ...}}</tool_call>`, in which the first call
counts, or answers: then it holds no call, and what follows its thought is the answer. The results stand in the role
that the tokenizer's chat template gives to a tool, and the template is given the tool's schema. A template that ignores
tools gets them in a system message. So a turn of a model that answers without a call is complete only with its
end-of-text token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dgpo_cli.core.types import Action
from dgpo_cli.core.untrusted import parse_json
from dgpo_cli.errors import InputError
from dgpo_cli.formats.base import Format, Mode, Turn
from dgpo_cli.formats.stream import Kind
from dgpo_cli.formats.usage import TOOL_CALLS as USAGE

SEARCH: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search a collection of passages.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for."}},
            "required": ["query"],
        },
    },
}
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# Some templates open the thought before the model writes.
_THOUGHT = re.compile(r"\s*+(?:<think>)?+((?:(?!</?think>).)*+)</think>", re.DOTALL)

_TEXTS = {
    "name": "dgpo-tool-calls",
    "prompt": (
        "Answer a question with the help of a search engine. Before every step, write your reasoning between <think> "
        "and </think>. To look something up, call the tool search. Search as often as you need. As soon as you know "
        "the answer, write nothing but the answer after </think>, as briefly as possible, for example: Lisbon\n"
        "Question: {question}\n"
    ),
    "observation": "{results}",
    "correction": (
        "That step had no action. To look something up, call the tool search with a query; to answer, write nothing "
        "but the answer after </think>."
    ),
}

_TASK = "Search results follow. They hold what is needed to answer the question. "
_EXAMPLE = "as briefly as possible, for example: Lisbon\nQuestion: {question}\n"
_READING: Mapping[Mode, str] = {
    "direct": f"{_TASK}Write nothing but the answer, {_EXAMPLE}",
    "think": f"{_TASK}First write your reasoning between <think> and </think>, then nothing but the answer, {_EXAMPLE}",
}


class ToolCalls(Format):
    texts: ClassVar[Mapping[str, str]] = _TEXTS
    kinds: ClassVar[Mapping[str, Kind]] = {
        "think": "think", "tool_call": "search", "tool_response": "results", "tools": "results",
    }  # fmt: skip
    outside = "answer"
    in_messages = True
    tools: ClassVar[Sequence[Mapping[str, Any]]] = (SEARCH,)

    @property
    def usage(self) -> str:
        return USAGE.replace("[TOOL]", repr([dict(SEARCH)])).replace("[TOLD]", repr(self.tools_text))

    @property
    def tools_text(self) -> str:
        """As the templates of Qwen2.5 and Qwen3 word it."""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
            f"function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\nFor each function "
            "call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
            '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )

    def parse(self, text: str, *, ended: bool) -> Turn:
        thought = _THOUGHT.match(text)
        rest = text if thought is None else text[thought.end() :]
        clean = thought is None or not any(marker in thought[1] for marker in self.markers)
        before, opened, after = rest.partition(_OPEN)
        body, closed, behind = after.partition(_CLOSE)
        if opened or _CLOSE in rest:
            kept = text[: len(text) - len(behind)] if closed else text
            query = _query(body) if closed else None
            if query is None:
                return Turn(kept, None, "")
            alone = clean and not before.strip() and not behind.strip()
            return Turn(kept, "search", query.strip(), thought is not None, alone)
        answer = rest.strip()
        if not ended or not answer or "<think>" in rest:
            return Turn(text, None, "")
        alone = clean and not any(marker in rest for marker in self.markers)
        place = len(text) - len(rest.lstrip())
        return Turn(text, "answer", answer, thought is not None, alone, place)

    def _write(self, think: str, action: Action, content: str) -> str:
        thought = f"<think>\n{think}\n</think>\n\n" if think else ""
        if action == "answer":
            return thought + content
        call = json.dumps({"name": "search", "arguments": {"query": content}}, ensure_ascii=False)
        return f"{thought}{_OPEN}\n{call}\n{_CLOSE}"

    def reading_prompt(self, mode: Mode) -> str:
        return _READING[mode]

    def begun(self, mode: Mode) -> str:
        """Without thinking, an empty thought is written for the model, as Qwen3's template does."""
        return "<think>\n\n</think>\n\n" if mode == "direct" else ""

    def instructs(self, prompt: str) -> bool:
        return "<think>" in prompt


def _query(call: str) -> str | None:
    """The query of a tool call; None if it is not a call of this tool."""
    try:
        value = parse_json(call, "a tool call")
    except InputError:
        return None
    if not isinstance(value, dict) or value.get("name") != "search":
        return None
    arguments = value.get("arguments")
    query = arguments.get("query") if isinstance(arguments, dict) else None
    return query if isinstance(query, str) else None
