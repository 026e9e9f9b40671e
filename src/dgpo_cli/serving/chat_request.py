"""A request to /v1/chat/completions by OpenAI's protocol, and what of it the agent can do.

Each question is an episode of its own, as in `dgpo chat`: the last message is the question, and nothing of the ones
before it is read. A field that would change the answer and has no effect here is refused; any other is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dgpo_cli.core.text import composed
from dgpo_cli.serving.door import ReplyRefused
from dgpo_cli.serving.settings import ServeSettings
from dgpo_cli.serving.shared import Asking

# By field, the values that ask for nothing that an agent does not do.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
}


class MessagePart(BaseModel):
    """A part of a message; only text is accepted."""

    type: str
    text: str | None = None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[MessagePart] | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0, which is the default, is greedy.")
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1, description="That the model may write, thoughts and queries included.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same.")

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def asking(self) -> Asking:
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Asking(self._question(), self.temperature, self.seed, most)

    def _question(self) -> str:
        """Raises ReplyRefused where the last message is no question."""
        place, last = len(self.messages) - 1, self.messages[-1]
        if last.role != "user":
            raise ReplyRefused(400, f"the last message is of {last.role}, not of user", param=f"messages.{place}.role")
        content = last.content or ""
        if not isinstance(content, str):
            other = next((part.type for part in content if part.type != "text"), None)
            if other is not None:
                raise ReplyRefused(400, f"a part of type {other!r} is no text", param=f"messages.{place}.content")
            content = "\n".join(part.text or "" for part in content)
        question = composed(content).strip()
        if not question:
            raise ReplyRefused(400, "the last message is empty", param=f"messages.{place}.content")
        return question


def read_request(body: bytes, settings: ServeSettings, model: str) -> tuple[ChatRequest, Asking]:
    """Raises ReplyRefused, naming the field. `model` is the one that is served."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ReplyRefused(400, f"{field or 'the request'}: {first['msg']}", param=field or None) from error
    for name, value in (request.model_extra or {}).items():
        if name in _HARMLESS and value is not None and value not in _HARMLESS[name]:
            allowed = " or ".join(["leave it out", *map(repr, _HARMLESS[name])])
            raise ReplyRefused(400, f"{name} is not supported: {allowed}", code="unsupported_parameter", param=name)
    if request.model not in (None, model):
        cause = f"the model {request.model!r} is not here; this server has {model!r}"
        raise ReplyRefused(404, cause, code="model_not_found", param="model")
    if len(request.messages) > settings.max_messages:
        cause = f"{len(request.messages)} messages are more than max_messages = {settings.max_messages}"
        raise ReplyRefused(400, cause, param="messages")
    asking = request.asking()
    if len(asking.text) > settings.max_question_chars:
        cause = f"{len(asking.text)} characters are more than max_question_chars = {settings.max_question_chars}"
        raise ReplyRefused(400, cause, param="messages")
    return request, asking
