"""Tables and JSON as text: a line for each row, with the names of its columns, so that a passage names its columns."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dgpo_cli.core.untrusted import LONGEST_LINE, parse_json
from dgpo_cli.errors import InputError
from dgpo_cli.retrieval.corpus.documents.document import Budget, Document, Section, Unreadable, decoded

MOST_CELLS = 5_000_000  # of a workbook, empty ones included; ours
_TITLES = ("title", "name")  # fields of a JSON object that say what it is about


def table(rows: Iterable[Sequence[object]], budget: Budget) -> str:
    """Rows as "Town: Vesapo; People: 300", by the names in the first row that has two cells or more, if all are text.

    A row of one cell stands as it is, as a caption does.
    """
    return "\n\n".join(map(budget.spend, _lines(rows)))


def _lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    names: dict[int, str] | None = None
    for row in rows:
        cells = {place: shown for place, value in enumerate(row) if (shown := _shown(value))}
        if names is None and len(cells) > 1:
            names = (
                cells if all(isinstance(row[place], str) and not _is_number(cells[place]) for place in cells) else {}
            )
            if names:
                continue
        if cells:
            yield "; ".join(f"{names[p]}: {text}" if names and p in names else text for p, text in cells.items())


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    return " ".join(str(value).split())


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").lstrip("+-").isdecimal()


def read_comma_separated(content: bytes) -> Document:
    """CSV with commas or semicolons, as its first line shows."""
    text = decoded(content)
    first = text.partition("\n")[0]
    return _separated(text, ";" if first.count(";") > first.count(",") else ",")


def read_tab_separated(content: bytes) -> Document:
    return _separated(decoded(content), "\t")


def _separated(text: str, delimiter: str) -> Document:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return Document("", [Section("", table(reader, Budget()))])
    except csv.Error as error:
        raise Unreadable(f"broken table (line {reader.line_num}: {error})") from error


def read_json(content: bytes) -> Document:
    """Every value with the names that lead to it. A list of objects is a section for each, under its title or name."""
    if len(content) > LONGEST_LINE:
        raise Unreadable(f"oversized JSON (more than {LONGEST_LINE:,} bytes)")
    try:
        value = parse_json(decoded(content), "JSON")
    except InputError as error:
        raise Unreadable(f"broken JSON ({error.message.removeprefix('JSON: ')[:80]})") from error
    rows = value if isinstance(value, list) and all(isinstance(row, dict) for row in value) else [value]
    budget = Budget()
    sections = [Section(_title(row), "\n\n".join(map(budget.spend, _leaves(row, "")))) for row in rows]
    return Document(_title(value), sections)


def _title(value: Any) -> str:
    found = (value.get(name) for name in _TITLES) if isinstance(value, dict) else ()
    return next((title for title in found if isinstance(title, str)), "")


def _leaves(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        text = ", ".join(map(_shown, value)) if isinstance(value, list) else _shown(value)
        if text:
            yield f"{name}: {text}" if name else text
