"""`dgpo report`: runs as one HTML page, to look at and to compare, or to follow while they are at work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.common.options import JsonFlag, QuietFlag
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted
from dgpo_cli.errors import ConfigError

_PAGE = Path("report.html")


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs of rl, kd, eval or distill-data, by name or folder; the last eight by default.",
            metavar="[RUN...]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"Page to write; {_PAGE} by default.", show_default=False)] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions of each set that can be read; with --watch the last ones.")
    ] = 100,
    watch: Annotated[bool, typer.Option("--watch", help="Serve a page that follows the runs, until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of --watch; any free one by default.", show_default=False)
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Curves, comparison and episodes of runs in one HTML file that needs no network; or a page that follows them.

    Evaluations of several models on the same questions show where two of them differ, question by question. Every
    token that a model wrote in `dgpo rl` has its log-probability, KL to the teacher, advantage and reward.

    Examples: `dgpo report` · `dgpo report --watch` · `dgpo report eval-0001 eval-0002 --out compare.html`
    """
    console = Console(json_output=json, quiet=quiet)
    if watch:
        if out is not None:
            raise ConfigError("--watch writes no page, so --out has no effect", hint="leave one of them out")
        _follow(console, runs or [], questions, port or 0)
        return
    if port is not None:
        raise ConfigError("--port is the port of --watch", hint="add --watch, or leave --port out")
    from dgpo_cli.core.folders import sole_writer
    from dgpo_cli.viewing.report import write_report
    from dgpo_cli.viewing.report_page import is_page

    target = out or _PAGE
    if target.exists() and target.stat().st_size and not is_page(target):
        raise ConfigError(f"{target} is there already, and is no page of `dgpo report`", hint="give another --out")
    with sole_writer(target):
        result = write_report(runs or (), target, questions=questions)
    for warning in result.warnings:
        console.warn(warning)
    if not runs:
        console.info(f"of the last runs: {', '.join(result.names)}")
    counts = (
        f"{counted(len(result.runs), 'run')}, {counted(result.questions, 'question')}, {result.bytes / 1e6:,.1f} MB"
    )
    console.print(f"{target}: {counts}; open it in a browser")
    console.result(asdict(result))


def _follow(console: Console, runs: list[Path], episodes: int, port: int) -> None:
    from dgpo_cli.core.extras import require
    from dgpo_cli.viewing.watch import Watch

    watch = Watch(runs, episodes=episodes)
    for module in ("fastapi", "uvicorn"):
        require(module, "serve", "`dgpo report --watch`")
    from dgpo_cli.serving import run
    from dgpo_cli.serving.settings import ServeSettings
    from dgpo_cli.viewing.watch_app import watch_app

    with run.bind("127.0.0.1", port) as bound:
        place = run.address(bound)

        def ready() -> None:
            console.info(f"the runs below this folder are on {place} for a browser of this machine; Ctrl-C stops")
            console.result({"url": place})

        run.serve(watch_app(watch), bound, ServeSettings(), ready=ready)
