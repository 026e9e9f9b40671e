"""The texts of a format (prompt, template of the results, correction) and the limits of episodes.

A `Protocol` is recorded with every model and every trajectory file, so that a model is always used with the text it was
trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.types import Passage
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats import registry
from dgpo_cli.formats.abstention import MAY_ABSTAIN
from dgpo_cli.formats.base import Format

ALWAYS_SEARCH = "Always search before you answer, also where you believe that you know the answer."
PROTOCOL_FILE = "protocol.json"  # in the folder of a model
_TAGS = "tags"
_TEXT = schema.maybe(schema.text())
# Settings of a rollout that shape an episode: a model should be used with those it was trained with.
LIMITS = ("top_k", "max_turns", "max_new_tokens", "max_observation_tokens", "max_prompt_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Protocol:
    """Templates. `prompt` holds `{question}` once, `observation` holds `{results}` once."""

    name: str
    prompt: str
    correction: str
    observation: str = ""  # by default the one of the format's own texts
    chat_template: bool = True  # wrap the prompt as a user message if the tokenizer has a template
    add_question_mark: bool = True
    top_k: int = 3  # passages per search that the model was trained with
    max_turns: int = 4  # turns that may search, likewise
    # Further limits of the episodes that it was trained with; None where they were not recorded.
    max_new_tokens: int | None = None
    max_observation_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    date: str | None = None  # that a chat template is rendered with, YYYY-MM-DD; None for today
    reranker: str | None = None  # name of the cross-encoder that ordered the passages in training
    format: str = _TAGS  # a name of `formats.registry`

    def __post_init__(self) -> None:
        if not self.observation:
            object.__setattr__(self, "observation", self.agent_format.texts["observation"])
        for template, hole in ((self.prompt, "{question}"), (self.observation, "{results}")):
            if template.count(hole) != 1:
                raise InputError(
                    f"protocol {self.name!r}: a template must hold {hole} exactly once, got {template!r}",
                    hint="repair the protocol.json of the model",
                )

    @classmethod
    def of(cls, form: str) -> Protocol:
        """The texts of a format for a model that was trained with none. Raises ConfigError for an unknown format."""
        texts = registry.get(form).texts
        return cls(
            name=texts["name"],
            prompt=texts["prompt"],
            correction=texts["correction"],
            observation=texts["observation"],
            format=form,
        )

    @property
    def agent_format(self) -> Format:
        return registry.get(self.format)

    def render_prompt(self, question: str) -> tuple[str, int]:
        """The user message for a question, and the number of look-alikes of markers escaped in it."""
        text, escaped = self.agent_format.escape(question.strip())
        if self.add_question_mark and not text.endswith("?"):
            text += "?"
        return self.prompt.replace("{question}", text), escaped

    def render_observation(self, passages: Sequence[Passage]) -> tuple[str, int]:
        """The observation for retrieved passages, and the number of look-alikes of markers escaped in them."""
        form = self.agent_format
        results, escaped = form.escape(form.render_results(passages))
        return self.observation.replace("{results}", results), escaped

    def to_json(self) -> dict[str, Any]:
        """The record; without `format` for tags, so that records made before other formats keep their digest."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in given.items() if (name, value) != ("format", _TAGS)}

    @classmethod
    def from_json(cls, record: Any) -> Protocol:
        """Raises InputError for a record of another form."""
        limits = {"top_k": schema.whole(1), "max_turns": schema.whole(0)}
        limits |= dict.fromkeys(LIMITS[2:], schema.maybe(schema.whole(1)))
        kind = schema.of(cls, name=schema.text(empty=False), date=_TEXT, reranker=_TEXT, **limits)
        hint = "write the protocol again with `dgpo export`, or use the dgpo version that made it"
        protocol = cls(**schema.check(record, kind, "the protocol", hint=hint))
        try:
            registry.get(protocol.format)
        except ConfigError as error:
            raise InputError(f"the protocol: {error.message}", hint=error.hint) from error
        return protocol

    @property
    def limits(self) -> dict[str, int]:
        """Those of LIMITS that are recorded."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    def with_limits(self, limits: Mapping[str, Any]) -> Protocol:
        """The same text with these LIMITS recorded; other names in the mapping are ignored."""
        return replace(self, **{name: limits[name] for name in LIMITS if name in limits})

    def reranked_by(self, model: str | None) -> Protocol:
        """The same text with the cross-encoder that orders passages; a folder counts by its name."""
        return replace(self, reranker=None if model is None else reranker_name(model))

    def always_searching(self) -> Protocol:
        """The same with a sentence before the question's line that asks for a search before every answer."""
        return self._saying(ALWAYS_SEARCH)

    def abstaining(self) -> Protocol:
        """The same with a sentence that says what to answer where the documents do not hold the answer."""
        return self._saying(MAY_ABSTAIN)

    def _saying(self, sentence: str) -> Protocol:
        if sentence in self.prompt:
            return self
        start = self.prompt.rfind("\n", 0, self.prompt.index("{question}")) + 1
        return replace(self, prompt=f"{self.prompt[:start]}{sentence}\n{self.prompt[start:]}")

    def same_text(self, other: Protocol) -> bool:
        """Whether a model of one can read the other's episodes, whatever their limits, dates and order of passages."""
        limits: dict[str, Any] = {name: getattr(self, name) for name in LIMITS}
        return self == replace(other, date=self.date, reranker=self.reranker, **limits)

    @property
    def digest(self) -> str:
        """Short hash for manifests: two files with the same digest hold the same agent text."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def reranker_name(model: str) -> str:
    """What records call a cross-encoder: a hub id as it is, a folder of this machine by its last part."""
    return Path(model).name if Path(model).exists() or model.startswith((".", "/", "~")) else model
