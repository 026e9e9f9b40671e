"""Chat templates are programs that come with a model: run here within limits of work, memory and output.

Jinja's sandbox keeps them from everything but computing; it limits neither their time nor their output.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from dgpo_cli.errors import ModelError, first_line

HINT = "use another tokenizer, or mend the chat_template of this one"
MOST_STEPS = 5_000_000  # lines of Python, compiling included; templates of released models take under 500,000
LONGEST = 1_000_000  # characters; the text around one message
MOST_MEMORY = 1 << 31  # bytes beyond those that the process has mapped
_STATUS = re.compile(r"VmSize:\s+(\d+) kB")


class _Endless(Exception):
    pass


def rendered(render: Callable[[], object]) -> str:
    """The result of `render`. Raises ModelError where it fails, does not end, or gives no text."""
    try:
        with _few_steps(), _little_memory():
            text = render()
    except Exception as error:  # the template's own errors, jinja's, and those of what it computes
        reason = first_line(error)
        raise ModelError(f"the tokenizer's chat template cannot be used: {reason[:200]}", hint=HINT) from error
    if not isinstance(text, str) or len(text) > LONGEST:
        what = f"{len(text):,} characters, {LONGEST:,} at most" if isinstance(text, str) else type(text).__name__
        raise ModelError(f"the tokenizer's chat template writes too much ({what})", hint=HINT)
    return text


def conversation_text(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
) -> str:
    """A conversation as transformers renders it on the day `now`. `special_tokens` are texts by name."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    return environment.from_string(template).render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **special_tokens
    )


@contextmanager
def _few_steps() -> Iterator[None]:
    steps = 0

    def count(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise _Endless(f"it does not end within {MOST_STEPS:,} steps")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _little_memory() -> Iterator[None]:
    """Limit the address space while the template runs, where the system reports how much is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = _address_space()
    if used is None or (soft != resource.RLIM_INFINITY and soft <= used + MOST_MEMORY):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            found = _STATUS.search(stream.read())
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
