"""Output for the user. The only file that imports rich: results on stdout, progress and messages on stderr.

The one door to the terminal: whatever a file, a server or a model wrote, no control character of it gets through.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import rich.box
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dgpo_cli.core.figures import shortened
from dgpo_cli.core.progress import Estimate, Lines
from dgpo_cli.core.progress import Progress as ProgressCallback
from dgpo_cli.core.records import to_json
from dgpo_cli.core.untrusted import visible, visible_json
from dgpo_cli.core.wrapping import Flow, Piece, first_line, wrapped
from dgpo_cli.launch import is_first_process

_UNBOUNDED = 100_000
_LEAST_ROOM = 20  # characters of a line, however narrow the terminal
_WHOLE = 16  # characters of a cell that is not broken
_FIGURE = re.compile(r"[-+<≤~]? ?[-+]?[\d,.]+( ?(%|s|min|h|d|B|M|KB|MB|GB|GiB|\*))*|-|")


def say_error(line: str) -> None:
    """One line on stderr from a process that has no console: before there is one, or after it failed."""
    with suppress(OSError):  # on a full disk there is nowhere left to say it
        sys.stderr.write(f"{visible(line)}\n")


class _Door(RichConsole):
    """Passes on rich's own control codes, and of all text what a terminal shows as it stands."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Console:
    """`json_output` leaves stdout to one JSON object at the end; `quiet` drops messages and progress.

    Of several processes only the first is heard.
    """

    def __init__(self, *, json_output: bool = False, quiet: bool = False) -> None:
        self.json_output, self.quiet, self._muted = json_output, quiet or not is_first_process(), not is_first_process()
        # Without a terminal there is no width to keep to, and a table that is cut off in a file is lost.
        width = None if sys.stdout.isatty() else _UNBOUNDED
        self._out = _Door(highlight=False, emoji=False, width=width, quiet=self._muted)
        self._err = _Door(stderr=True, highlight=False, emoji=False, quiet=self._muted)
        self._flow = Flow(lambda: self.width, cell_len)

    @property
    def interactive(self) -> bool:
        """A person sits at both ends."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    @property
    def watched(self) -> bool:
        """Messages and progress go to a terminal, not to a file."""
        return self._err.is_terminal

    @property
    def width(self) -> int:
        """Characters of a line: of the terminal, or for a file as many as it takes."""
        return self._out.width

    def info(self, text: str) -> None:
        if not self.quiet:
            self._remark(visible(text), "dim")

    def warn(self, text: str) -> None:
        self._remark(Text.assemble(("warning:", "yellow"), f" {visible(text)}"), None)

    def _remark(self, text: str | Text, style: str | None) -> None:
        with suppress(OSError):  # long work does not end because its log is on a full disk
            self._line(self._err, text, style)

    def print(self, text: str = "", style: str | None = None) -> None:
        """A line of the human-readable result; nothing with --json."""
        if not self.json_output:
            self._line(self._out, visible(text), style)

    def next(self, *commands: str) -> None:
        """The next commands, a line each, in full: each runs in this folder as it stands."""
        for place, command in enumerate(commands):
            if not self.json_output:
                self._out.print(f"{'next:' if not place else '     '} {visible(command)}", markup=False, soft_wrap=True)

    @staticmethod
    def _line(to: RichConsole, text: str | Text, style: str | None) -> None:
        """A terminal gets lines that end between words; what goes elsewhere is left as it is."""
        to.print(text, style=style, markup=False, soft_wrap=not to.is_terminal)

    def paragraph(self, text: str, *, indent: int = 0, style: str | None = None, lines: int | None = None) -> None:
        """Text of any length, `indent` blanks before each of its lines; of one line alone, an ellipsis for the rest."""
        room = max(_LEAST_ROOM, self.width - indent)
        shown = visible(text)
        for line in [first_line(shown, room, cell_len)] if lines == 1 else wrapped(shown, room, cell_len):
            self.print(f"{' ' * indent}{line}", style)

    def stream(self, text: str, style: str | None = None) -> None:
        """Text without a line end, shown at once up to its last word, which is whole when more has come."""
        self._write(self._flow.feed(visible(text), style))

    def end_stream(self) -> None:
        """Show the rest of what was streamed, and end its line."""
        self._write(self._flow.flush())
        if self._flow.column:
            self.stream("\n")

    def _write(self, pieces: Iterable[Piece]) -> None:
        for text, style in pieces:
            self._out.print(text, style=style, end="", markup=False, soft_wrap=True)
        self._out.file.flush()

    def ask(self, prompt: str) -> str:
        """One line from the user. Raises EOFError at the end of the input."""
        return self._out.input(Text(visible(prompt), "bold"))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Numbers to the right, text to the left; nothing with --json.

        Columns that do not fit side by side without breaking a word follow below, each time with the first one.
        """
        if self.json_output:
            return
        longest = max(24, self.width // 2)
        columns = [visible(column) for column in columns]
        shown = [[visible(_cell(value)) for value in row] for row in rows]
        cells = [[" ".join(shortened(word, longest) for word in cell.split(" ")) for cell in row] for row in shown]
        numeric = [bool(rows) and all(_numeric(row[place]) for row in rows) for place in range(len(columns))]
        for number, part in enumerate(_parts([columns, *cells], self.width)):
            table = Table(
                title=Text(visible(title), "table.title") if title and not number else None,
                title_justify="left",
                box=rich.box.SIMPLE_HEAD,
                padding=(0, 1, 0, 0),
                show_header=any(columns),
            )
            for place, width in part:
                table.add_column(
                    Text(columns[place]), justify="right" if numeric[place] else "left", width=width, overflow="fold"
                )
            for row in cells:
                table.add_row(*(Text(row[place]) for place, _ in part))
            self._out.print(table, crop=False)

    def result(self, values: Mapping[str, Any]) -> None:
        """The command's one JSON object, with --json only."""
        if self.json_output and not self._muted:
            sys.stdout.write(visible_json(to_json(values)) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str, unit: str = "it") -> Iterator[ProgressCallback]:
        """A bar with rate and time left on a terminal, a line now and then elsewhere.

        Yields `(done, total, note="")`; the note, figures of the work, stands below the bar or behind the line.
        """
        if self.quiet:
            yield _silent
        elif self._err.is_terminal:
            yield from self._bar(description, unit)
        else:
            with Lines(description, unit, self.info) as lines:
                yield lines

    def _bar(self, description: str, unit: str) -> Iterator[ProgressCallback]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=max(8, min(40, self._err.width - 62))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        with _NotedProgress(*columns, console=self._err, transient=True) as bar:
            task, estimate = bar.add_task(visible(description), total=None, rate="", left=""), Estimate(visible(unit))

            def update(done: int, total: int, /, note: str = "") -> None:
                now = time.monotonic()
                estimate.report(done, now)
                bar.note = note
                rate, left = estimate.rate(now), estimate.left(total, now)
                bar.update(task, completed=done, total=total or None, rate=rate, left=left)

            yield update


class _Told(logging.Handler):
    """Shows log records of the layers below as warnings: they print nothing themselves."""

    def emit(self, record: logging.LogRecord) -> None:
        Console().warn(self.format(record))


def tell_logged() -> None:
    """Show what this package logs from warnings on. Once is enough."""
    log = logging.getLogger("dgpo_cli")
    if not any(isinstance(handler, _Told) for handler in log.handlers):
        log.addHandler(_Told(logging.WARNING))


class _NotedProgress(Progress):
    """A progress bar with a line of figures below it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(visible(self.note), style="dim")


def _parts(lines: Sequence[Sequence[str]], room: int) -> Iterator[list[tuple[int, int]]]:
    """The columns of `lines` as tables that fit into `room` characters: (place, width) of each column.

    A column gets its longest word at least; what is left of a line goes to those whose cells are longer, from the left.
    """
    natural = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))]
    least = [max(_least(line[place], head=line is lines[0]) for line in lines) for place in range(len(natural))]
    frame, between = 1, 2  # of rich.box.SIMPLE_HEAD with this padding

    def needed(places: Sequence[int]) -> int:
        return frame + sum(least[place] + between for place in places)

    part = [0]
    groups = []
    for place in range(1, len(natural)):
        if needed([*part, place]) > room and len(part) > 1:
            groups.append(part)
            part = [0]
        part.append(place)
    for places in [*groups, part]:
        spare = room - needed(places)
        widths = []
        for place in places:
            more = max(0, min(spare, natural[place] - least[place]))
            widths.append((place, least[place] + more))
            spare -= more
        yield widths


def _least(cell: str, *, head: bool = False) -> int:
    """Characters that a cell takes when it is broken between words; what is short, such as a figure, stays whole."""
    whole = not head and cell_len(cell) <= _WHOLE
    return cell_len(cell) if whole else max((cell_len(word) for word in cell.split()), default=0)


def _silent(_done: int, _total: int, /, note: str = "") -> None:
    """Progress that nobody sees."""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numeric(value: object) -> bool:
    if isinstance(value, str):
        return _FIGURE.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
