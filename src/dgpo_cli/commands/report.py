"""`dgpo report`: runs as one HTML page, to look at and to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag
from dgpo_cli.console import Console


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs of rl, kd, eval or distill-data, by name or folder; the last eight by default.",
            metavar="[RUN...]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    questions: Annotated[int, typer.Option(min=1, help="Questions of each set that can be read.")] = 100,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Curves, comparison and episodes of runs in one HTML file that needs no network.

    Evaluations of several models on the same questions show where two of them differ, question by question.

    Examples: `dgpo report` · `dgpo report rl-0001` · `dgpo report eval-0001 eval-0002 --out compare.html`
    """
    from dgpo_cli.core.extras import require
    from dgpo_cli.core.folders import sole_writer
    from dgpo_cli.viewing.report import write_report

    require("matplotlib", "plots", "`dgpo report`")
    console = Console(json_output=json, quiet=quiet)
    with sole_writer(out):
        result = write_report(runs or (), out, questions=questions)
    for warning in result["warnings"]:
        console.warn(warning)
    if not runs:
        console.info(f"of the last runs: {', '.join(result['names'])}")
    counts = f"{len(result['runs'])} runs, {result['questions']} questions, {result['bytes'] / 1e6:,.1f} MB"
    console.print(f"{out}: {counts}; open it in a browser")
    console.result(result)
