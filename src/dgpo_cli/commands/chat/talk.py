"""`dgpo chat` on a terminal: the conversation, and its commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dgpo_cli.agent import transcript
from dgpo_cli.commands.chat.screen import Screen, found_passages, show_passages
from dgpo_cli.commands.common.trained import tell_other_limits
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.core.text import composed
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.untrusted import decoded
from dgpo_cli.errors import ConfigError, DgpoError
from dgpo_cli.viewing.chat import Chat

# name: (what follows it, what it does)
COMMANDS = {
    "/help": ("", "this list"),
    "/passages": ("[N]", "the passages that the last question found, or all of passage N"),
    "/trace": ("", "the last episode, token for token as the model saw it"),
    "/k": ("N", "passages per search"),
    "/save": ("FILE", "all episodes: .jsonl as records, anything else as Markdown"),
    "/quit": ("", "leave, as Ctrl-D does"),
}
SAME = {"/passage": "/passages", "/exit": "/quit"}
KEYS = """Ctrl-C stops an answer and clears the line; in an empty line it leaves. Up and Ctrl-R find earlier questions,
Tab completes a command. Pasted lines are one question."""
_DIGITS = 9  # of a number that anybody means


def converse(
    console: Console,
    talk: Chat,
    ask: Callable[[], str],
    answering: Callable[[], AbstractContextManager[None]],
    examples: Sequence[str] = (),
    limits: tuple[dict[str, int], str] = ({}, ""),
    *,
    repeats: bool = True,
) -> None:
    """Ask and answer until the user leaves. `answering` holds while the model works; `repeats` says that a line which
    was typed is shown again.

    `limits` are those that the model was trained with, as `search_limits` tells them.
    """
    console.print(
        "Ask a question; /help lists what else there is. Each question is a fresh episode: the model does not know "
        "what you asked before."
    )
    if examples:
        console.print("For example:")
    for example in examples:
        console.paragraph(example, indent=2, style="bold")
    screen = Screen(console, talk.agent.codec.format)
    while True:
        try:
            line = _typed(ask())
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        except DgpoError as error:
            _warn(console, error)
            continue
        if not line:
            continue
        if repeats:
            console.print(f"> {line}", style="bold")
        if SAME.get(line, line) == "/quit":
            return
        try:
            if line.startswith("/"):
                _command(console, talk, line, limits)
            else:
                with answering():
                    episode = talk.ask(line, screen)
                screen.finish(episode)
        except KeyboardInterrupt:
            screen.stop()
        except DgpoError as error:
            screen.end()
            _warn(console, error)


def _typed(line: str) -> str:
    """Raises InputError for what a terminal sends that is no text."""
    return composed(decoded(line.encode(errors="surrogateescape"), "what was typed")).strip()


def _warn(console: Console, error: DgpoError) -> None:
    console.warn(error.message + (f" ({error.hint})" if error.hint else ""))


def _command(console: Console, talk: Chat, line: str, limits: tuple[dict[str, int], str]) -> None:
    """Raises ConfigError or InputError for what cannot be done; the conversation goes on."""
    name, _, rest = line.partition(" ")
    name, rest = SAME.get(name, name), rest.strip()
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name}", hint="/help lists the commands")
    if rest and not COMMANDS[name][0]:
        raise ConfigError(f"{name} takes nothing behind it, not {rest!r}", hint=f"write {name}")
    if name == "/help":
        _help(console)
    elif name == "/passages":
        _passages(console, talk, rest)
    elif name == "/trace":
        _trace(console, talk)
    elif name == "/k":
        talk.top_k = _number(rest, "/k", f"now {talk.top_k}; write it like /k 5")
        console.print(f"{counted(talk.top_k, 'passage')} per search")
        tell_other_limits(console, {"top_k": talk.top_k}, limits)
    elif name == "/save":
        if not rest:
            raise ConfigError("/save needs a file name", hint="write it like /save chat.md")
        talk.save(Path(rest).expanduser())
        console.print(f"saved {counted(len(talk.episodes), 'episode')} to {rest}")


def _number(text: str, command: str, hint: str) -> int:
    if not (text.isdecimal() and len(text) <= _DIGITS):
        raise ConfigError(f"{command} {text[:40]!r} is not a number", hint=hint)
    return int(text)


def _help(console: Console) -> None:
    width = max(len(f"{name} {argument}") for name, (argument, _) in COMMANDS.items()) + 2
    for name, (argument, does) in COMMANDS.items():
        console.print(f"{f'{name} {argument}':{width}}{does}")
    console.print(" ".join(KEYS.split()))


def _last(talk: Chat) -> Trajectory:
    if not talk.episodes:
        raise ConfigError("there is no episode yet", hint="ask a question first")
    return talk.episodes[-1]


def _passages(console: Console, talk: Chat, rest: str) -> None:
    episode = _last(talk)
    count = len(found_passages(episode))
    if not count:
        raise ConfigError("the last question found no passages", hint="/trace shows what the model wrote")
    number = _number(rest, "/passages", f"1 to {count}; write it like /passages 1") if rest else None
    if number is not None and not 1 <= number <= count:
        raise ConfigError(f"there is no passage {number}", hint=f"1 to {count}; /passages shows them all")
    show_passages(console, episode, number)


def _trace(console: Console, talk: Chat) -> None:
    for written, text in transcript.parts(_last(talk), talk.agent.codec.decode):
        console.print("the model wrote:" if written else "the model read:", style="bold")
        console.print(text, style="green" if written else "dim")
