"""What --dry-run shows of a command that makes a run, and what it refuses as the run would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpo_cli.commands.common.options import show_settings
from dgpo_cli.console import Console


def show_planned(
    console: Console,
    command: str,
    settings: Any,
    more: Mapping[str, Any],
    *,
    out: Path | None,
    resume: Path | None,
    fresh: bool,
) -> None:
    """The resolved settings, and `more` with --json.

    Raises ConfigError where a run would go on that was begun with other settings or inputs.
    """
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import require_same
    from dgpo_cli.core.run_identity import Work

    if (place := going_on(out, resume, fresh=fresh)) is not None:
        config = asdict(settings)
        require_same(place, Work(command, config, contents(config)))
    console.result(show_settings(console, settings) | dict(more))


def going_on(out: Path | None, resume: Path | None, *, fresh: bool) -> Path | None:
    """The run of a given place that would go on."""
    from dgpo_cli.core.run_names import find_run
    from dgpo_cli.core.run_record import read_run

    place = out if resume is None else find_run(resume) or resume
    if place is None or fresh or not (place / "run.json").is_file() or read_run(place)["status"] == "discarded":
        return None
    return place
