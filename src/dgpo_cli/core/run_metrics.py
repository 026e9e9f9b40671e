"""What a run logs: one object a line in metrics.jsonl, of which every number is a metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.core.records import parse_line

METRICS_FILE = "metrics.jsonl"
_ALARM = schema.record(  # of the collapse guard
    dict.fromkeys(("alarm", "metric", "action"), schema.text()) | dict.fromkeys(("mean", "threshold"), schema.number())
)
_ROW = schema.record({"step": schema.whole(0)}, also=lambda row: _ALARM.fault(row, "") if "alarm" in row else "")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows that a run logged; an incomplete last line is left out. Raises InputError for a damaged line."""
    file = path / METRICS_FILE
    if not file.is_file():
        return []
    content = file.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [metrics_row(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def metrics_row(line: bytes, place: str) -> dict[str, Any]:
    """Raises InputError that names the place."""
    row: dict[str, Any] = schema.check(parse_line(line, place), _ROW, place, hint=f"remove {place}")
    return row


def measured(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a row of metrics, or of a result; None where it has none of that name."""
    value = row.get(name)
    return value if schema.is_number(value) else None
