"""The text of Search-R1 (arXiv 2503.09516): think in <think>, ask in <search>, read <information>, end with <answer>.

Deviation from the reference: a live turn ends at the first closing tag of either kind, whereas the reference looks for
`</search>` first and executes the first pair it finds. `Tags.parse` itself follows the reference on any text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from dgpo_cli.core.types import Action
from dgpo_cli.formats.base import Format, Mode, Turn
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.formats.registry import get
from dgpo_cli.formats.stream import Kind

_KINDS: Mapping[str, Kind] = {"think": "think", "search": "search", "information": "results", "answer": "answer"}
_ACTIONS: tuple[Action, ...] = ("search", "answer")
_INNER = rf"(?:(?!</?(?:{'|'.join(_KINDS)})>).)*"  # text without a tag
_ALONE = re.compile(
    rf"\s*(?P<thought><think>{_INNER}</think>\s*)?<(?P<action>search|answer)>{_INNER}</(?P=action)>\s*", re.DOTALL
)

_TEXTS = {
    "name": "dgpo",
    "prompt": (
        "You answer a question with the help of a search engine. Before every step, write your reasoning between "
        "<think> and </think>. To look something up, write <search> your query </search>; the results follow between "
        "<information> and </information>. Search as often as you need. As soon as you know the answer, write it "
        "between <answer> and </answer>, as briefly as possible, for example <answer> Lisbon </answer>.\n"
        "Question: {question}\n"
    ),
    "observation": "\n\n<information>{results}</information>\n\n",
    "correction": (
        "\nThat step had no action. A query belongs between <search> and </search>, the final answer between <answer> "
        "and </answer>. Next attempt:\n"
    ),
}

_TASK = (
    "Search results follow between <information> and </information>. They hold what is needed to answer the question. "
)
_EXAMPLE = "the answer between <answer> and </answer>, as briefly as possible, for example <answer> Lisbon </answer>.\n"
_READING: Mapping[Mode, str] = {
    "direct": _TASK + f"Write only {_EXAMPLE}Question: {{question}}\n",
    "think": _TASK
    + f"First write your reasoning between <think> and </think>, then {_EXAMPLE}Question: {{question}}\n",
}


class Tags(Format):
    texts: ClassVar[Mapping[str, str]] = _TEXTS
    kinds: ClassVar[Mapping[str, Kind]] = _KINDS

    def parse(self, text: str, *, ended: bool = True) -> Turn:
        """Cut at the first `</search>`, else at the first `</answer>`; take the first tag pair in the rest."""
        kept = text
        for tag in self.stops:
            head, found, _ = text.partition(tag)
            if found:
                kept = head + tag
                break
        # The pair that opens first; no pattern with a lazy middle, which would try every opening tag to the end.
        pairs = [pair for action in _ACTIONS if (pair := _first_pair(kept, action)) is not None]
        if not pairs:
            return Turn(kept, None, "")
        begin, action, content = min(pairs)
        shape = _ALONE.fullmatch(text)
        thought = shape is not None and bool(shape["thought"])
        place = begin + len(content) - len(content.lstrip()) if action == "answer" else None
        return Turn(kept, action, content.strip(), thought, shape is not None, place)

    def _write(self, think: str, action: Action, content: str) -> str:
        thought = f"<think> {think} </think>\n" if think else ""
        return f"{thought}<{action}> {content} </{action}>"

    def reading_prompt(self, mode: Mode) -> str:
        return _READING[mode]

    def begun(self, mode: Mode) -> str:
        """Without thinking, the answer is begun for the model: it can only extract."""
        return "<answer>" if mode == "direct" else ""

    def instructs(self, prompt: str) -> bool:
        return "<answer>" in prompt


TAGS = get("tags")
DEFAULT = Protocol.of("tags")
# The tiny models of the offline world have a context of a few hundred tokens, so their prompt is the question alone.
TINYWORLD = Protocol(
    name="tinyworld",
    prompt="{question}\n",
    correction="\nno action\n",
    observation="<information>{results}</information>",
    chat_template=False,
    top_k=2,
    max_turns=2,
)


def compact(think: str, action: Action, content: str) -> str:
    """A turn without a blank or a line end around its texts, as the models of the offline world write it."""
    return f"{f'<think>{think}</think>' if think else ''}<{action}>{content}</{action}>"


def _first_pair(text: str, action: Action) -> tuple[int, Action, str] | None:
    """The text in the first `<action>` that is closed, and where it begins."""
    begin = text.find(f"<{action}>")
    start = begin + len(action) + 2
    end = text.find(f"</{action}>", start)
    return None if begin < 0 or end < 0 else (start, action, text[start:end])
