"""What a user sees. The only file that imports rich: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dgpo_cli.core.progress import Progress as ProgressCallback


def processes() -> int:
    """How many of them a launcher, such as `accelerate launch`, started to work together."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.get("RANK") and os.environ.get("WORLD_SIZE") else 1


def is_first_process() -> bool:
    """Whether this is the one of them that speaks and writes."""
    return processes() == 1 or os.environ["RANK"] == "0"


class Console:
    """`json_output` leaves stdout to one JSON object at the end; `quiet` drops messages and progress.

    Of several processes only the first is heard.
    """

    def __init__(self, *, json_output: bool = False, quiet: bool = False) -> None:
        self.json_output, self.quiet, self._muted = json_output, quiet or not is_first_process(), not is_first_process()
        # Without a terminal there is no width to keep to, and a table that is cut off in a file is lost.
        width = None if sys.stdout.isatty() else 160
        self._out = RichConsole(highlight=False, soft_wrap=True, emoji=False, width=width, quiet=self._muted)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=self._muted)

    @property
    def interactive(self) -> bool:
        """A person sits at both ends."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    def info(self, text: str) -> None:
        if not self.quiet:
            self._err.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        self._err.print(f"[yellow]warning:[/yellow] {escape(text)}")

    def print(self, text: str = "", style: str | None = None) -> None:
        """A line of the human-readable result; nothing with --json."""
        if not self.json_output:
            self._out.print(text, style=style, markup=False)

    def stream(self, text: str, style: str | None = None) -> None:
        """Text without a line end, shown at once."""
        self._out.print(text, style=style, end="", markup=False)
        self._out.file.flush()

    def ask(self, prompt: str) -> str:
        """One line from the user. Raises EOFError at the end of the input."""
        return self._out.input(f"[bold]{escape(prompt)}[/bold]")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Numbers to the right, text to the left; nothing with --json."""
        if self.json_output:
            return
        table = Table(
            title=escape(title) if title else None,
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            show_header=any(columns),
        )
        for place, column in enumerate(columns):
            numeric = bool(rows) and all(_numeric(row[place]) for row in rows)
            table.add_column(escape(column), justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(escape(_cell(value)) for value in row))
        self._out.print(table)

    def result(self, values: Mapping[str, Any]) -> None:
        """The command's one JSON object, with --json only."""
        if self.json_output and not self._muted:
            sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str, unit: str = "it") -> Iterator[ProgressCallback]:
        """A bar with rate and time left on a terminal, a line now and then elsewhere. Yields `(done, total)`."""
        if self.quiet:
            yield _silent
        elif self._err.is_terminal:
            yield from self._bar(description, unit)
        else:
            yield self._lines(description, unit)

    def _bar(self, description: str, unit: str) -> Iterator[ProgressCallback]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(escape(description), total=None, rate="")

            def update(done: int, total: int) -> None:
                speed = bar.tasks[task].speed
                rate = f"{speed:.1f} {unit}/s" if speed else ""
                bar.update(task, completed=done, total=total or None, rate=rate)

            yield update

    def _lines(self, description: str, unit: str) -> ProgressCallback:
        import time

        began = shown = time.monotonic()
        first: int | None = None
        last = 0

        def update(done: int, total: int) -> None:
            nonlocal began, shown, first, last
            now = time.monotonic()
            if first is None:
                first = done
            elif done < last:  # another pass over the same things has a rate of its own
                first, began = done, now
            last = done
            if now - shown < 15:
                return
            shown = now
            rate = (done - first) / max(1e-9, now - began)
            left = f", {(total - done) / rate:.0f} s left" if rate and total else ""
            self.info(f"{description}: {done}/{total or '?'} ({rate:.2g} {unit}/s{left})")

        return update


def _silent(_done: int, _total: int, /) -> None:
    """Progress that nobody sees."""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
