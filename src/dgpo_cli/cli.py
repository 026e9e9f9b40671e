"""The `dgpo` command: registers the commands and turns errors that a user can fix into one line and a hint."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from dgpo_cli import __version__
from dgpo_cli.commands import chat, distill_data, doctor, evaluate, export, index, kd, models, quickstart, rl, runs
from dgpo_cli.errors import DgpoError

app = typer.Typer(
    name="dgpo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.command("index")(index.index)
app.command("distill-data")(distill_data.distill_data)
app.command("kd")(kd.kd)
app.command("rl")(rl.rl)
app.command("eval")(evaluate.evaluate)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("models")(models.models)
app.command("runs")(runs.runs)
app.command("doctor")(doctor.doctor)


def _version(show: bool) -> None:
    if show:
        print(f"dgpo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Train and run compact language models that search like agents.

    The path: [bold]index[/bold] a corpus, let a teacher make [bold]distill-data[/bold], cold-start a student with
    [bold]kd[/bold], improve it with [bold]rl[/bold], measure it with [bold]eval[/bold], talk to it with
    [bold]chat[/bold]. All of it offline, in minutes: [bold]dgpo quickstart[/bold].
    """


def main() -> None:
    """Run the command line; exit 1 for an error that the user can fix, 130 when interrupted."""
    try:
        app()
    except DgpoError as error:
        if os.environ.get("DGPO_DEBUG"):
            raise
        _fail(error.message, error.hint)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last saved state", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if os.environ.get("DGPO_DEBUG") or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "no permission to write"
        _fail(f"{what}: {error.filename or error.strerror}", "give --out on another disk; what was saved is kept")


def _fail(message: str, hint: str | None) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
