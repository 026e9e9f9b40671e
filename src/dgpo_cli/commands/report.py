"""`dgpo report`: runs as one HTML page, to look at and to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.shared import JsonFlag, QuietFlag
from dgpo_cli.console import Console


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of rl, kd, eval or distill-data.", metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("report.html"),
    questions: Annotated[int, typer.Option(min=1, help="Questions of each set that can be read.")] = 100,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Curves, comparison and episodes of runs in one HTML file that needs no network.

    Evaluations of several models on the same questions show where two of them differ, question by question.

    Examples: `dgpo report runs/rl-0001` · `dgpo report runs/eval-0001 runs/eval-0002 -o compare.html`
    """
    from dgpo_cli.pipelines.report import write_report

    console = Console(json_output=json, quiet=quiet)
    result = write_report(runs, out, questions=questions)
    for warning in result["warnings"]:
        console.warn(warning)
    console.print(
        f"{out}: {len(result['runs'])} runs, {result['questions']} questions, {result['bytes'] / 1e6:,.1f} MB"
    )
    console.result(result)
