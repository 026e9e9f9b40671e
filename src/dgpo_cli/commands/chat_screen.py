"""`dgpo chat` on a terminal: the conversation, and what is shown while an episode runs."""

from __future__ import annotations

from pathlib import Path

from dgpo_cli.console import Console
from dgpo_cli.core.types import SearchCall, Trajectory
from dgpo_cli.errors import ConfigError, DgpoError
from dgpo_cli.pipelines.chat import Chat, Piece, TagStream
from dgpo_cli.reporting import transcript
from dgpo_cli.rollout import events

HELP = """/help        this list
/trace       the last episode, token for token as the model saw it
/k N         passages per search
/save FILE   all episodes: .jsonl as records, anything else as Markdown
/quit        leave (also Ctrl-C or Ctrl-D at the prompt)"""
STYLES = {"think": "italic dim", "search": "cyan", "answer": "bold green"}


class Screen:
    """Listens to one episode after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stream = TagStream()
        self._line_open = False

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TokenText):
            self._write(self._stream.feed(event.text))
        elif isinstance(event, events.SearchStarted):
            self._end_turn()
        elif isinstance(event, events.SearchDone):
            self._searched(event.call)
        elif isinstance(event, events.Correction):
            self._end_turn()
            self._console.print("this turn had no action; the model was told so:", style="yellow")
            self._console.print(f"  {event.text.strip()}", style="yellow")
        elif isinstance(event, events.Finished):
            self._end_turn()
            self._finished(event.trajectory)

    def stop(self) -> None:
        """The episode was interrupted."""
        self._end_turn()
        self._console.print("stopped", style="yellow")

    def _write(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            style = "dim" if piece.is_tag else STYLES.get(piece.tag or "")
            self._console.stream(piece.text, style=style)
            self._line_open = not piece.text.endswith("\n")

    def _end_turn(self) -> None:
        self._write(self._stream.flush())
        if self._line_open:
            self._console.print()
            self._line_open = False

    def _searched(self, call: SearchCall) -> None:
        self._console.print(f"searched: {call.query or '(nothing)'}  [{call.seconds:.2f} s]", style="cyan")
        failed = call.error is not None
        for line in transcript.hits(call):
            self._console.print(f"  {line}", style="bold red" if failed else "blue")

    def _finished(self, trajectory: Trajectory) -> None:
        found = trajectory.answer is not None
        if trajectory.truncated_observations:
            self._console.print(f"{trajectory.truncated_observations} search results were cut to fit", style="yellow")
        self._console.print()
        self._console.print(
            f"  {transcript.outcome(trajectory)}  ", style="bold reverse green" if found else "bold red"
        )
        self._console.print()


def converse(console: Console, talk: Chat) -> None:
    """Ask and answer until the user leaves."""
    console.print(
        "Ask a question; /help lists what else there is. Each question is a fresh episode: the model does not"
    )
    console.print("know what you asked before.")
    screen = Screen(console)
    while True:
        try:
            line = console.ask("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _command(console, talk, line)
            elif line:
                talk.ask(line, screen)
        except KeyboardInterrupt:
            screen.stop()
        except DgpoError as error:
            console.warn(error.message + (f" ({error.hint})" if error.hint else ""))


def _command(console: Console, talk: Chat, line: str) -> None:
    """Raises ConfigError or InputError for what cannot be done; the conversation goes on."""
    name, _, rest = line.partition(" ")
    if name == "/help":
        console.print(HELP)
    elif name == "/trace":
        _trace(console, talk)
    elif name == "/k":
        if not rest.strip().isdecimal():
            raise ConfigError(f"/k {rest.strip()!r} is not a number", hint=f"now {talk.top_k}; write it like /k 5")
        talk.top_k = int(rest)
        console.print(f"{talk.top_k} passages per search")
    elif name == "/save":
        if not rest.strip():
            raise ConfigError("/save needs a file name", hint="write it like /save chat.md")
        talk.save(Path(rest.strip()))
        console.print(f"saved {len(talk.episodes)} episodes to {rest.strip()}")
    else:
        raise ConfigError(f"unknown command {name}", hint="/help lists the commands")


def _trace(console: Console, talk: Chat) -> None:
    if not talk.episodes:
        raise ConfigError("there is no episode yet", hint="ask a question first")
    for written, text in transcript.parts(talk.episodes[-1], talk.agent.codec.decode):
        console.print("the model wrote:" if written else "the model read:", style="bold")
        console.print(text, style="green" if written else "dim")
