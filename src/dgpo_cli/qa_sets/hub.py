"""Questions of any data set of the hub, by the names of its columns: `hf:REPO:SPLIT?question=query&answers=reply.text`.

A name with dots leads into a column of records. Columns that have the names of FlashRAG, or `answer` or `answers`, need
no mapping, and neither does SQuAD's record of answers; where it holds none, the question is unanswerable (SQuAD 2.0).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from dgpo_cli.core.hub_rows import PREFIX, hub_rows
from dgpo_cli.errors import ConfigError, InputError

FIELDS = ("id", "question", "answers", "hops", "supporting_titles", "supporting_ids", "unanswerable")
_ANSWERS = ("golden_answers", "answers", "answer")


def is_hub_set(name: str) -> bool:
    return name.startswith(PREFIX)


def set_name(location: str) -> str:
    """What its questions are called in records: the name of the repository."""
    return location.removeprefix(PREFIX).partition("?")[0].partition(":")[0].rstrip("/").rpartition("/")[2]


def hub_questions(location: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) in FlashRAG's form. Raises ConfigError for a mapping, InputError for a set that cannot be had."""
    place, _, query = location.partition("?")
    named = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if wrong := sorted(named.keys() - set(FIELDS)):
        raise ConfigError(f"{location}: there is no {wrong[0]!r} to map", hint=f"map one of {', '.join(FIELDS)}")
    rows = hub_rows(place)
    columns: list[str] = rows.column_names
    answers = next((name for name in _ANSWERS if name in columns), "answers")
    mapping = {field: field for field in FIELDS if field in columns} | {"question": "question", "answers": answers}
    mapping |= named
    for field, column in mapping.items():
        if column.partition(".")[0] not in columns:
            raise InputError(
                f"{place} has no column {column!r}, it has {', '.join(columns)}",
                hint=f"name the right one: '{place}?{field}=COLUMN'",
            )
    for number, row in enumerate(rows, start=1):
        found = {field: _value(row, column) for field, column in mapping.items() if field != "answers"}
        yield f"row {number}", found | _answers(row, mapping["answers"])


def _answers(row: Any, column: str) -> dict[str, Any]:
    record = _value(row, column.removesuffix(".text"))
    if isinstance(record, Mapping) and record.keys() >= {"text", "answer_start"}:  # SQuAD's
        return {"golden_answers": record["text"]} | ({} if record["text"] else {"unanswerable": True})
    given = _value(row, column)
    return {"golden_answers": [given] if isinstance(given, str) else given}


def _value(row: Any, column: str) -> Any:
    value = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
