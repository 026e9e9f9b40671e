"""The `dgpo` command: registers the commands and turns errors that a user can fix into one line and a hint."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn, cast

import typer

from dgpo_cli import __version__
from dgpo_cli.commands import (
    audit,
    distill_data,
    doctor,
    export,
    kd,
    learn,
    mcp,
    models,
    plan,
    recipes,
    report,
    reproduce,
    rl,
    runs,
    search,
)
from dgpo_cli.commands.chat import command as chat
from dgpo_cli.commands.common.few_kernels import keep_few_kernels
from dgpo_cli.commands.common.help import Command, Group
from dgpo_cli.commands.common.milvus import use_milvus_environment
from dgpo_cli.commands.common.search_environment import use_search_environment
from dgpo_cli.commands.evaluate import command as evaluate
from dgpo_cli.commands.index import command as index
from dgpo_cli.commands.make_questions import command as make_questions
from dgpo_cli.commands.quickstart import command as quickstart
from dgpo_cli.commands.serve import command as serve
from dgpo_cli.console import say_error, tell_logged
from dgpo_cli.core import interrupts, streams
from dgpo_cli.core.disk import system_error
from dgpo_cli.core.figures import shortened
from dgpo_cli.core.out_of_memory import is_out_of_memory
from dgpo_cli.core.untrusted import file_name, has_surrogates
from dgpo_cli.errors import ConfigError, DgpoError
from dgpo_cli.launch import is_first_process, launch_fault, processes


class _InOrderOfUse(Group):
    """Typer lists groups, such as `index`, after all commands; a reader meets it second."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = [name for name in self.commands if name != "index"]
        return [*names[:1], "index", *names[1:]]


app = typer.Typer(
    name="dgpo",
    cls=_InOrderOfUse,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(index.app, name="index")
app.command("search")(search.search)
app.command("learn")(learn.learn)
app.command("make-questions")(make_questions.make_questions)
app.command("audit")(audit.audit)
app.command("distill-data")(distill_data.distill_data)
app.command("kd")(kd.kd)
app.command("rl")(rl.rl)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("reproduce")(reproduce.reproduce)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.command("recipes")(recipes.recipes)
app.command("plan")(plan.plan)
app.command("models")(models.models)
app.command("runs")(runs.runs)
app.command("doctor")(doctor.doctor)
for _registered in (*app.registered_commands, *index.app.registered_commands):
    _registered.cls = Command

# Typer brings its own copy of Click, so its errors are reached through the one it exports: its base's base.
_CommandLineError = cast(type[Exception], typer.BadParameter.__mro__[2])
_ASKED = ("search",)  # their argument is a question and no place: they say themselves that it is empty
_TOGETHER = ("index", "kd", "rl")  # what several processes of one launch do as one

_LONGEST_LINE = 1000  # characters of an error: a name in it may be of any length

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = (errno.ENOMEM,)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTSUP,
    errno.ENXIO, errno.ENODEV, errno.ENOTEMPTY, errno.EXDEV,
)  # fmt: skip
_BAD_DISK = (errno.EIO, errno.ESTALE, errno.EBUSY, errno.ETXTBSY, errno.ETIMEDOUT)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"dgpo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - the callback answers it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and run compact language models that search like agents.

    The path: **index** a corpus, let a teacher answer questions (**distill-data**), cold-start a student with
    **kd**, improve it with **rl**, measure it with **eval**, talk to it with
    **chat**. All of it offline, in minutes: **dgpo quickstart**; from your own documents: **dgpo learn**.
    """
    tell_logged()
    if has_surrogates(folder := str(Path.cwd())):
        raise ConfigError(
            f"the working folder is {file_name(folder)}: not UTF-8", hint="rename it: records hold paths as text"
        )
    if fault := launch_fault():
        raise ConfigError(
            f"{fault}: no place of a process among those of a launch",
            hint="unset both, or start with `accelerate launch`",
        )
    use_search_environment()
    keep_few_kernels()
    if processes() > 1 and context.invoked_subcommand not in _TOGETHER:
        raise ConfigError(
            f"{processes()} processes were launched, and `dgpo {context.invoked_subcommand or ''}` runs in one",
            hint=f"start it with `dgpo`; {', '.join(_TOGETHER)} run in several",
        )
    use_milvus_environment()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; exit 1 for an error that the user can fix, 2 for wrong usage, 130 when interrupted."""
    try:
        _run(argv)
    except SystemExit as ended:
        lost = streams.flush()
        if lost is None or ended.code:
            raise
        if not isinstance(lost, BrokenPipeError):
            _fail_by_system(lost)
        sys.exit(1)


def _run(argv: list[str] | None) -> NoReturn:
    if os.environ.get("DGPO_DEBUG"):
        sys.exit(app(argv, prog_name="dgpo"))
    for stream in (sys.stdout, sys.stderr):  # a terminal whose encoding has no such letter still gets the line
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_arguments(sys.argv[1:] if argv is None else argv)
        status = app(argv, prog_name="dgpo", standalone_mode=False)
    except DgpoError as error:
        _fail(error.message, error.hint)
    except (KeyboardInterrupt, typer.Abort):
        status = interrupts.STATUS
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        status = 1
    except MemoryError:
        _fail_memory()
    except OSError as error:
        _fail_by_system(system_error(error) or error)
    except _CommandLineError as error:
        _fail_usage(error)
    except Exception as error:
        if found := system_error(error):
            _fail_by_system(found)
        if is_out_of_memory(error):
            _fail_memory()
        raise
    if status == interrupts.STATUS and is_first_process():
        say_error("stopped; the same command goes on from what was saved (`dgpo runs` lists it)")
    sys.exit(status)


def _check_arguments(argv: Sequence[str]) -> None:
    """Arguments are questions and paths, which records keep as text. An empty path would mean this folder."""
    for place, argument in enumerate(argv):
        if has_surrogates(argument):
            raise ConfigError(f"{file_name(argument)}: not UTF-8", hint="write it in UTF-8, or rename the file so")
        option = argument if argument.startswith("-") else argv[place - 1] if place else ""
        if option == argv[0] and option in _ASKED:
            continue
        name, equals, value = argument.partition("=")
        if not argument.strip() or (name.startswith("--") and equals and not value.strip()):
            after = f" to {option.partition('=')[0]}" if option.startswith("-") else ""
            raise ConfigError(f"an empty text was given{after}", hint="give a value, or leave the option out")


def _fail(message: str, hint: str | None, *, code: int = 1) -> NoReturn:
    if processes() > 1:
        from dgpo_cli.models.devices import world

        told = world().fail(message, hint)
        if told is None:
            time.sleep(1)  # the launcher ends them all once one is gone: not before the first has spoken
            sys.exit(code)
        message, hint = told
    say_error(f"error: {_one_line(message)}")
    if hint:
        say_error(f"hint: {_one_line(hint)}")
    sys.exit(code)


def _one_line(text: str) -> str:
    """Beginning and end say what is wrong where a name in it is very long."""
    return shortened(" ".join(text.split()), _LONGEST_LINE)


def _fail_by_system(error: OSError) -> NoReturn:
    """A full disk, a missing permission and a wrong path are the user's to mend; anything else is a bug."""
    where = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if error.errno in _NO_ROOM:
        _fail(f"no room to write: {where}", "free some space, or write to another disk; what was saved is kept")
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        hint = "this disk takes no file of that size: write to another one; what was saved is kept"
        if limit != resource.RLIM_INFINITY:
            hint = (
                f"a process of this shell may write files of {limit:,} bytes: `ulimit -f unlimited`, then the same "
                "command again; what was saved is kept"
            )
        _fail(f"no room to write: {where}", hint)
    if error.errno in _NO_MEMORY:
        _fail_memory()
    if error.errno in _NO_FILES:
        _fail(f"too many open files: {where}", "allow more: `ulimit -n 4096`, then the same command again")
    if error.errno in _NO_PERMISSION:
        _fail(f"no permission: {where}", "give a place that you may read and write")
    if error.errno in _BAD_DISK:
        _fail(f"the disk fails: {where}", "see to the disk or its connection; what was saved is kept")
    if error.errno == errno.ENOENT and not error.filename and not _has_working_folder():
        _fail("the folder in which this command works is gone", "change into a folder that is there")
    if error.errno in _WRONG_PATH and error.filename:
        _fail(where, "check the path")
    raise error


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _fail_memory() -> NoReturn:
    _fail(
        "not enough memory",
        "free memory (`dgpo doctor`), or take less at once: --batch-size in eval, -o rollout.wave elsewhere; "
        "what was saved is kept",
    )


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback, as `sys.excepthook`: a file or a server may have had a hand in its message."""
    say_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def _fail_usage(error: Exception) -> NoReturn:
    """Typer's message in the form of all others."""
    context = getattr(error, "ctx", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    command = context.command_path if context is not None else "dgpo"
    _fail(message, f"`{command} --help` shows what it takes", code=getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
