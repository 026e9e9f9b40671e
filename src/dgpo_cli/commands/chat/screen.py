"""`dgpo chat` on a terminal: what is shown while an episode runs, and of its passages afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_cli.agent import events, transcript
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.core.trajectory import Trajectory
from dgpo_cli.core.types import Hit, SearchCall
from dgpo_cli.formats.base import Format
from dgpo_cli.formats.stream import Piece
from dgpo_cli.retrieval.evidence import evidence

STYLES = {"think": "italic dim", "search": "cyan", "answer": "bold green"}
_LONG = 1_000  # characters of a passage among others


class Screen:
    """Listens to one episode after the other."""

    def __init__(self, console: Console, form: Format) -> None:
        self._console = console
        self._stream = form.stream()
        self._passages = 0  # that this episode has shown

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TokenText):
            self._write(self._stream.feed(event.text))
        elif isinstance(event, events.SearchStarted):
            self._end_turn()
        elif isinstance(event, events.SearchDone):
            self._searched(event.call)
        elif isinstance(event, events.Correction):
            self._end_turn()
            self._console.print("this turn had no action; the model was sent a correction:", style="yellow")
            self._console.paragraph(event.text.strip(), indent=2, style="yellow")

    def end(self) -> None:
        """Nothing more comes of the episode."""
        self._end_turn()
        self._passages = 0

    def stop(self) -> None:
        """The episode was interrupted."""
        self.end()
        self._console.print("stopped", style="yellow")

    def finish(self, episode: Trajectory) -> None:
        """Show how it ended, and the passage that holds its answer."""
        self.end()
        if episode.truncated_observations:
            cut = counted(episode.truncated_observations, "search result")
            verb = "was" if episode.truncated_observations == 1 else "were"
            self._console.print(f"{cut} {verb} cut to fit", style="yellow")
        self._console.print()
        found = episode.answer is not None
        self._console.print(f"  {transcript.outcome(episode)}  ", style="bold reverse green" if found else "bold red")
        source = evidence(episode.answer, episode.searches)
        if source is not None:
            self._console.paragraph(
                f"in passage {source.place + 1}, {title_of(source.passage.title)}: {source.sentence}",
                indent=2,
                style="dim",
            )
        self._console.print()

    def _write(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._console.stream(piece.text, style="dim" if piece.is_tag else STYLES.get(piece.kind or ""))

    def _end_turn(self) -> None:
        self._write(self._stream.flush())
        self._console.end_stream()

    def _searched(self, call: SearchCall) -> None:
        self._console.print(f"searched: {call.query or '(nothing)'}  [{call.seconds:.2f} s]", style="cyan")
        if call.error is not None or not call.hits:
            (why,) = transcript.hits(call)
            self._console.paragraph(why, indent=2, style="bold red" if call.error is not None else "blue")
        for number, hit in enumerate(call.hits, start=self._passages + 1):
            self._console.paragraph(heading(number, hit), indent=2, style="blue")
            self._console.paragraph(hit.passage.text, indent=5, style="dim", lines=1)
        self._passages += len(call.hits)


def show_passages(console: Console, episode: Trajectory, only: int | None = None) -> None:
    """All passages that an episode found, long ones up to a limit, or one of them whole."""
    for number, (query, hit) in enumerate(found_passages(episode), start=1):
        if only not in (None, number):
            continue
        console.paragraph(f"{heading(number, hit)}, found by: {query}", style="blue")
        text = hit.passage.text or hit.passage.title
        whole = only is not None or len(text) <= _LONG
        console.paragraph(text if whole else f"{text[:_LONG].rpartition(' ')[0]} …", indent=3)
        if not whole:
            console.print(f"   {len(text):,} characters; /passages {number} shows all of it", style="dim")


def found_passages(episode: Trajectory) -> Sequence[tuple[str, Hit]]:
    """(query, hit) of all searches, in the order in which they are numbered."""
    return [(call.query, hit) for call in episode.searches for hit in call.hits]


def heading(number: int, hit: Hit) -> str:
    return f"{number}. {title_of(hit.passage.title)} ({hit.score:.2f})"


def title_of(title: str) -> str:
    """A title for a line; where a corpus has none, what stands in its place is a whole text."""
    return title if len(title) <= 100 else f"{title[:100].rpartition(' ')[0] or title[:100]} …"
