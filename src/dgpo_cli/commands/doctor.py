"""`dgpo doctor`: what this machine has, and what will and will not work on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag
from dgpo_cli.console import Console


def doctor(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Check Python, libraries, device, memory, disk and the model hub, and say what will work here.

    Ends with status 1 if something is missing that every command needs.

    Example: `dgpo doctor`
    """
    from dgpo_cli.planning.doctor import diagnose

    console = Console(json_output=json, quiet=quiet)
    with console.progress("looking around", "check") as progress:
        diagnosis = diagnose(Path(), progress=progress)
    console.table("", ["", "", ""], [[c.name, c.status, c.found] for c in diagnosis.checks])
    for check in diagnosis.checks:
        if check.advice:
            console.print(f"{check.name}: {check.advice}")
    verdicts = [["yes" if v.works else "no", v.task, v.why] for v in diagnosis.verdicts]
    console.table("what works here", ["", "", ""], verdicts)
    console.result(
        {
            "healthy": diagnosis.healthy,
            "checks": [asdict(check) for check in diagnosis.checks],
            "works": [asdict(verdict) for verdict in diagnosis.verdicts],
        }
    )
    if not diagnosis.healthy:
        raise typer.Exit(1)
