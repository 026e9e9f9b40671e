"""Shared by `distill-data`, `kd` and `rl`: options, the list of methods, the closing message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dgpo_cli.commands.common.next_steps import after_kd, after_rl
from dgpo_cli.commands.common.options import absolute, choose, tell_run
from dgpo_cli.console import Console
from dgpo_cli.core.figures import counted, duration
from dgpo_cli.launch import is_first_process, processes

if TYPE_CHECKING:
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.training.run.lifecycle import TrainingResult
    from dgpo_cli.training.settings import KDSettings, RLSettings

Settings = TypeVar("Settings", "KDSettings", "RLSettings")

TEACHER = "qwen-3b"  # the paper's
TeacherOption = Annotated[str | None, typer.Option(help=f"Alias, hub id, folder or run; {TEACHER} by default.")]
Teacher8bitFlag = Annotated[bool | None, typer.Option("--teacher-8bit", help="Load the teacher in 8 bit.")]
QuestionsOption = Annotated[
    str | None, typer.Option(help="QA sets or question files, comma-separated; nq,hotpotqa by default.")
]
IndexOption = Annotated[str | None, typer.Option(help="Index folder or server address.")]
KeepOption = Annotated[int, typer.Option(min=1, help="How many resumable states to keep.")]
OnCollapseOption = Annotated[
    str | None, typer.Option(help="warn (default), stop, or rollback to the best weights with a lower rate.")
]
ReportToOption = Annotated[
    str | None, typer.Option(help="Trackers that get the metrics too: tensorboard, wandb, trackio, comma-separated.")
]
DescribeOption = Annotated[str | None, typer.Option(help="Show the settings of a method, then stop.")]
FitFlag = Annotated[
    bool | None, typer.Option("--fit", help="First find the largest micro-batch (rl: and wave) that memory allows.")
]
EpisodesFlag = Annotated[
    bool | None,
    typer.Option(
        "--episodes/--no-episodes",
        help="Show one of the student's episodes every few minutes; on a terminal by default.",
        show_default=False,
    ),
]
ListFlag = Annotated[bool, typer.Option("--list", help="List the methods, then stop.")]


def choose_teacher(console: Console, given: str | None) -> str:
    """A teacher that was given, else the one that this folder remembers, else TEACHER."""
    return choose(console, "teacher", given, TEACHER, hint="give --teacher")


def with_teacher(console: Console, settings: Settings) -> Settings:
    """The settings with a teacher where their method reads one, else without: a run's record names no other model.

    Raises ConfigError.
    """
    from dgpo_cli.objectives.registry import create
    from dgpo_cli.training.ingredients import needs_teacher

    if not needs_teacher(create(settings.method, settings.objective)):
        if settings.teacher is not None:
            console.warn(f"method {settings.method} reads no teacher: {settings.teacher} is left out")
        return replace(settings, teacher=None)
    return replace(settings, teacher=choose_teacher(console, settings.teacher))


def choose_questions(console: Console, given: str | None) -> str:
    return choose(console, "questions", given, "nq,hotpotqa", hint="give --data")


@contextmanager
def training_run(
    console: Console,
    command: str,
    settings: Any,
    *,
    out: Path | None,
    resume: Path | None,
    fresh: bool,
    trackers: tuple[str, ...],
) -> Iterator[RunDir]:
    """The run folder that the command works in; of several processes the first writes it, and tells the trackers."""
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import RunDir
    from dgpo_cli.training.run.tracking import tracked

    def open_run() -> RunDir:
        config = asdict(settings)
        return RunDir.open(command, config, out=out, resume=resume, fresh=fresh, inputs=contents(config))

    if processes() == 1:
        opened = open_run()
    else:
        from dgpo_cli.training.run.lifecycle import open_together

        opened = open_together(open_run)
    with opened as run:
        tell_run(console, run)
        if processes() > 1:
            console.info(f"{processes()} processes train together")
        with tracked(run, trackers if is_first_process() else (), console.info):
            yield run
    if processes() > 1:
        from dgpo_cli.models.devices import leave

        leave()


def follow(
    console: Console, command: str, run: RunDir, result: TrainingResult, made_with: Mapping[str, str | None]
) -> None:
    """Remember what was made, and what of `made_with` there was, and say what comes next."""
    from dgpo_cli.core.workspace import Workspace
    from dgpo_cli.training.run.progress_line import best_validation

    if not is_first_process():
        return
    path = absolute(str(run.path))
    used = {key: value for key, value in made_with.items() if value is not None}
    Workspace().remember(
        by=f"dgpo {command}", model=path, last_run=path, **used, **({"student": path} if command == "kd" else {})
    )
    if idle := result.untrained_steps:
        console.warn(f"{idle} of {result.steps} steps trained nothing: no text was written in them")
    best = best_validation(result.best, run.metrics())
    console.print(f"{run.path}: {counted(result.steps, 'step')} in {duration(result.seconds)}{best}")
    teacher = Workspace().resolve("teacher", None).value is not None
    console.next(*(after_rl() if command == "rl" else after_kd(teacher=teacher)))
    console.result(asdict(result) | {"run": str(run.path)})
