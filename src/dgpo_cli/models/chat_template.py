"""Chat templates are programs that come with a model: run here within limits of work, memory and output.

Jinja's sandbox keeps them from everything but computing; it limits neither their time nor their output. Steps in Python
are counted; a single operation that could take for ever is refused before it begins, since nothing can stop it then.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from dgpo_cli.errors import ModelError, first_line

HINT = "use another tokenizer, or mend the chat_template of this one"
MOST_STEPS = 5_000_000  # lines of Python, compiling included; templates of released models take under 500,000
LONGEST = 1_000_000  # characters; the text around one message
MOST_SECONDS = 10.0  # of the processor; a step may copy a long text
MOST_MEMORY = 1 << 31  # bytes beyond those that the process has mapped
_MOST_BITS = 4_096  # of a number
_LOOKED = 8  # steps between two looks at the clock
_WIDE = re.compile(r"\d{4}|\*")  # a width or a precision in a format that no template needs
# Filters whose work has no limit, or grows faster than the text; templates do without them.
_LEFT_OUT = ("pprint", "round", "urlize", "wordwrap")
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

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _refuse_endless(operator, left, right)
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    for name in _LEFT_OUT:
        del environment.filters[name]
    formatted = environment.filters["format"]

    def form(value: object, *given: Any, **named: Any) -> object:
        _refuse_endless("%", str(value), None)
        return formatted(value, *given, **named)

    environment.filters["format"] = form
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False} | how)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    return environment.from_string(template).render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **special_tokens
    )


def _refuse_endless(operator: str, left: Any, right: Any) -> None:
    """Raises ValueError for a product, a power or a format whose result is larger than any template needs."""
    if operator == "%":
        endless = isinstance(left, str) and _WIDE.search(left) is not None
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        endless = (bits + right.bit_length() if operator == "*" else bits * abs(right)) > _MOST_BITS
    else:  # a text or a list, so many times
        times = [side for side in (left, right) if isinstance(side, int)]
        repeated = [side for side in (left, right) if isinstance(side, str | list | tuple)]
        endless = bool(times and repeated) and times[0] * len(repeated[0]) > LONGEST
    if endless:
        raise ValueError(f"its {operator} gives too large a result")


@contextmanager
def _few_steps() -> Iterator[None]:
    steps, began = 0, time.thread_time()

    def count(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise _Endless(f"it does not end within {MOST_STEPS:,} steps")
        if steps % _LOOKED == 0 and time.thread_time() - began > MOST_SECONDS:
            raise _Endless(f"it does not end within {MOST_SECONDS:g} seconds")
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
