"""What `dgpo chat` shows on a terminal while an episode runs."""

from __future__ import annotations

import re

from dgpo_cli.console import Console
from dgpo_cli.core.types import SearchCall, Trajectory
from dgpo_cli.pipelines.chat import Piece, TagStream
from dgpo_cli.reporting import transcript
from dgpo_cli.rollout import events

STYLES = {"think": "italic dim", "search": "cyan", "answer": "bold green"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Passages and model text are untrusted: control characters would steer the terminal, so they are replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


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
            self._console.print(f"  {visible(event.text.strip())}", style="yellow")
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
            self._console.stream(visible(piece.text), style=style)
            self._line_open = not piece.text.endswith("\n")

    def _end_turn(self) -> None:
        self._write(self._stream.flush())
        if self._line_open:
            self._console.print()
            self._line_open = False

    def _searched(self, call: SearchCall) -> None:
        self._console.print(f"searched: {visible(call.query) or '(nothing)'}  [{call.seconds:.2f} s]", style="cyan")
        failed = call.error is not None
        for line in transcript.hits(call):
            self._console.print(f"  {visible(line)}", style="bold red" if failed else "blue")

    def _finished(self, trajectory: Trajectory) -> None:
        found = trajectory.answer is not None
        if trajectory.truncated_observations:
            self._console.print(f"{trajectory.truncated_observations} search results were cut to fit", style="yellow")
        self._console.print()
        self._console.print(
            f"  {visible(transcript.outcome(trajectory))}  ", style="bold reverse green" if found else "bold red"
        )
        self._console.print()
