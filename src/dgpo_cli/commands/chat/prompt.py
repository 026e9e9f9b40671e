"""The line in which a person types: editing, history, completion, and pasted lines that are one question."""

from __future__ import annotations

import re
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

MARK = "> "


def asking(
    history: History, commands: Mapping[str, str], *, keys: Input | None = None, screen: Output | None = None
) -> Callable[[], str]:
    """A function that asks for one line, and raises EOFError or KeyboardInterrupt where a person wants to leave.

    `commands` are completed; each value says what follows: nothing, "FILE" or something else. `keys` and `screen` stand
    for the terminal.
    """
    session: PromptSession[str] = PromptSession(
        [("bold", MARK)],
        history=history,
        completer=_Commands(commands),
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        key_bindings=_bindings(),
        enable_suspend=True,
        erase_when_done=True,  # whoever asked shows the line again, broken between words
        input=keys,
        output=screen or _terminal(),
    )
    return session.prompt


@contextmanager
def unheard_keyboard() -> Iterator[None]:
    """Discard keys typed meanwhile, except Ctrl-C, and do not show them."""
    descriptor = sys.stdin.fileno()
    usual = termios.tcgetattr(descriptor)
    muted = [*usual]
    muted[3] = usual[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, muted)
    try:
        yield
    finally:
        termios.tcflush(descriptor, termios.TCIFLUSH)
        termios.tcsetattr(descriptor, termios.TCSANOW, usual)


def _terminal() -> Output:
    """Stdout, which is not asked where its cursor is: only menus need to know, and not every terminal answers."""
    output = create_output()
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


class _Commands(Completer):
    """Names of commands, and of files behind those that take one."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands, self._files = commands, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        name, blank, rest = typed.partition(" ")
        if blank and self._commands.get(name) == "FILE":
            yield from self._files.get_completions(Document(rest), complete_event)
        elif not blank and typed.startswith("/"):
            for command, argument in self._commands.items():
                if command.startswith(name):
                    yield Completion(f"{command} " if argument else command, -len(name), display=command)


def _something_typed() -> bool:
    return bool(get_app().current_buffer.text)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add(Keys.BracketedPaste)
    def pasted(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(re.sub(r"\s+", " ", event.data))

    @bindings.add(Keys.Enter, filter=has_focus(DEFAULT_BUFFER))
    def enter(event: KeyPressEvent) -> None:
        """A line end with more text behind it in the same moment was pasted, on a terminal that does not say so."""
        if any(len(press.key) == 1 for press in event.key_processor.input_queue):
            event.current_buffer.insert_text(" ")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add(Keys.ControlC, filter=has_focus(DEFAULT_BUFFER) & Condition(_something_typed))
    @bindings.add(Keys.SIGINT, filter=has_focus(DEFAULT_BUFFER) & Condition(_something_typed))
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return bindings
