"""What the run.json of a run folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgpo_cli.core import schema
from dgpo_cli.errors import ConfigError

DISCARDED = "discarded"  # status of a run that another one replaces in its folder
_RUN = schema.record(
    {
        "command": schema.text(empty=False),
        "status": schema.one_of("running", "finished", DISCARDED),
        "digest": schema.text(),
        "created": schema.text(),
    },
    {
        "seed": schema.maybe(schema.whole()),
        "result": schema.map_of(schema.ANYTHING),
        "inputs": schema.map_of(schema.text()),
        "date": schema.text(),  # that the chat template is rendered with, YYYY-MM-DD
    },
)


def read_run(path: Path) -> dict[str, Any]:
    """The content of run.json. Raises InputError if it is damaged."""
    hint = f"move the folder {path} away"
    record: dict[str, Any] = schema.read_record(path / "run.json", _RUN, hint=hint)
    return record


def require_command(path: Path, command: str, *, hint: str) -> dict[str, Any]:
    """What `read_run` returns. Raises ConfigError for a run of another command."""
    record = read_run(path)
    if (made_by := record["command"]) != command:
        raise ConfigError(f"{path} is a run of `dgpo {made_by}`, not of `dgpo {command}`", hint=hint)
    return record
