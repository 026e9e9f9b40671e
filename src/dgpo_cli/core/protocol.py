"""The agent's text format: prompt, tags, observation, correction. The only place that knows it.

The format is Search-R1's (arXiv 2503.09516): the model thinks in <think>, asks in <search>, reads <information> and
ends with <answer>. A `Protocol` is a set of templates; it is recorded with every model and every trajectory file, so
that a model always meets the text it was trained on.

Deviation from the reference: a live turn ends at the first closing tag of either kind, whereas the reference looks for
`</search>` first and executes the first pair it finds. `parse_turn` itself follows the reference on any text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from dgpo_cli.core import schema
from dgpo_cli.core.disguises import look_alike
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import InputError

TAGS = ("think", "search", "information", "answer")
CLOSING_TAGS = ("</search>", "</answer>")  # a turn ends at the first of either
TAG_TOKENS = tuple(tag for name in TAGS for tag in (f"<{name}>", f"</{name}>"))

ALWAYS_SEARCH = "Always search before you answer, also where you believe that you know the answer."
_look_alike = cache(lambda: look_alike(TAGS))


Action = Literal["search", "answer"]
_ACTIONS: tuple[Action, ...] = ("search", "answer")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one generated turn means. `kept` is the text up to the first closing tag, that tag included."""

    kept: str
    action: Action | None
    content: str


def parse_turn(generated: str) -> Turn:
    """Cut at the first `</search>`, else at the first `</answer>`; take the first tag pair in what is kept."""
    kept = generated
    for tag in CLOSING_TAGS:
        head, found, _ = generated.partition(tag)
        if found:
            kept = head + tag
            break
    # The pair that opens first; no pattern with a lazy middle, which would try every opening tag to the end.
    pairs = [pair for action in _ACTIONS if (pair := _first_pair(kept, action)) is not None]
    if not pairs:
        return Turn(kept, None, "")
    _, action, content = min(pairs)
    return Turn(kept, action, content.strip())


def _first_pair(text: str, action: Action) -> tuple[int, Action, str] | None:
    """Where the first `<action>` that is closed begins, and what stands in it."""
    begin = text.find(f"<{action}>")
    start = begin + len(action) + 2
    end = text.find(f"</{action}>", start)
    return None if begin < 0 or end < 0 else (begin, action, text[start:end])


def escape_tags(text: str) -> tuple[str, int]:
    """Make look-alikes of the agent's tags visible as text (`&lt;answer>`). Returns the text and how many there were.

    Passages and questions are untrusted: a tag in them must not end the observation or act as the model's own.
    """
    return _look_alike().subn("&lt;", text)


def render_results(passages: Sequence[Passage]) -> str:
    """Passages as the reference prints them: `Doc 1(Title: <first line>) <rest>`, one after the other."""
    lines = []
    for rank, passage in enumerate(passages, start=1):
        title, _, text = passage.contents.partition("\n")
        lines.append(f"Doc {rank}(Title: {title}) {text}\n")
    return "".join(lines).strip()


# Settings of a rollout that shape an episode: a model should meet those that it was trained with.
LIMITS = ("top_k", "max_turns", "max_new_tokens", "max_observation_tokens", "max_prompt_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Protocol:
    """Templates. `prompt` holds `{question}` once, `observation` holds `{results}` once."""

    name: str
    prompt: str
    correction: str
    observation: str = "\n\n<information>{results}</information>\n\n"
    chat_template: bool = True  # wrap the prompt as a user message if the tokenizer has a template
    add_question_mark: bool = True
    top_k: int = 3  # passages per search that the model was trained with
    max_turns: int = 4  # turns that may search, likewise
    # Further limits of the episodes that it was trained with; None where nobody recorded them.
    max_new_tokens: int | None = None
    max_observation_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    date: str | None = None  # that a chat template is rendered with, YYYY-MM-DD; None for today

    def __post_init__(self) -> None:
        for template, hole in ((self.prompt, "{question}"), (self.observation, "{results}")):
            if template.count(hole) != 1:
                raise InputError(
                    f"protocol {self.name!r}: a template must hold {hole} exactly once, got {template!r}",
                    hint="repair the protocol.json beside the model",
                )

    def render_prompt(self, question: str) -> tuple[str, int]:
        """The user message for a question, and the number of tag look-alikes escaped in it."""
        text, escaped = escape_tags(question.strip())
        if self.add_question_mark and not text.endswith("?"):
            text += "?"
        return self.prompt.replace("{question}", text), escaped

    def render_observation(self, passages: Sequence[Passage]) -> tuple[str, int]:
        """The observation for retrieved passages, and the number of tag look-alikes escaped in them."""
        results, escaped = escape_tags(render_results(passages))
        return self.observation.replace("{results}", results), escaped

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, record: Any) -> Protocol:
        """Raises InputError for a record of another form."""
        limits = dict.fromkeys(("top_k", "max_turns"), schema.whole(1))
        limits |= dict.fromkeys(LIMITS[2:], schema.maybe(schema.whole(1)))
        kind = schema.of(cls, name=schema.text(empty=False), date=schema.maybe(schema.text()), **limits)
        hint = "write the protocol again with `dgpo export`, or use the dgpo version that made it"
        return cls(**schema.check(record, kind, "the protocol", hint=hint))

    @property
    def limits(self) -> dict[str, int]:
        """Those of LIMITS that are recorded."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    def with_limits(self, limits: Mapping[str, Any]) -> Protocol:
        """The same text, to be recorded with what is trained or written under these LIMITS; other names are left."""
        return replace(self, **{name: limits[name] for name in LIMITS if name in limits})

    def always_searching(self) -> Protocol:
        """With a sentence, in front of the question's line, that asks for a search before every answer."""
        if ALWAYS_SEARCH in self.prompt:
            return self
        start = self.prompt.rfind("\n", 0, self.prompt.index("{question}")) + 1
        return replace(self, prompt=f"{self.prompt[:start]}{ALWAYS_SEARCH}\n{self.prompt[start:]}")

    def same_text(self, other: Protocol) -> bool:
        """Whether a model of one can read the other's episodes; how long they are, and the date, do not matter."""
        return self == replace(other, date=self.date, **{name: getattr(self, name) for name in LIMITS})

    @property
    def digest(self) -> str:
        """Short hash for manifests: two files with the same digest hold the same agent text."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


DEFAULT = Protocol(
    name="dgpo",
    prompt=(
        "You answer a question with the help of a search engine. Before every step, write your reasoning between "
        "<think> and </think>. To look something up, write <search> your query </search>; the results follow between "
        "<information> and </information>. Search as often as you need. As soon as you know the answer, write it "
        "between <answer> and </answer>, as briefly as possible, for example <answer> Lisbon </answer>.\n"
        "Question: {question}\n"
    ),
    correction=(
        "\nThat step had no action. A query belongs between <search> and </search>, the final answer between <answer> "
        "and </answer>. Next attempt:\n"
    ),
)

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
