"""`dgpo kd`: cold start of a student on a teacher's trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.given import given_names, recorded, said_names, settings_from
from dgpo_cli.commands.common.going_on import show_planned
from dgpo_cli.commands.common.methods import describe_methods, require_method
from dgpo_cli.commands.common.options import (
    ConfigOption,
    DeviceOption,
    DryRunFlag,
    FreshFlag,
    JsonFlag,
    OutOption,
    QuietFlag,
    ResumeOption,
    SeedOption,
    SetOption,
    absolute,
    choose,
    choose_index,
)
from dgpo_cli.commands.common.trained import as_trained
from dgpo_cli.commands.common.training_options import (
    DescribeOption,
    EpisodesFlag,
    FitFlag,
    KeepOption,
    ListFlag,
    OnCollapseOption,
    ReportToOption,
    Teacher8bitFlag,
    follow,
    training_run,
    with_teacher,
)
from dgpo_cli.console import Console
from dgpo_cli.launch import processes

if TYPE_CHECKING:
    from dgpo_cli.training.settings import KDSettings


def kd(
    student: Annotated[str | None, typer.Option(help="Alias, hub id, folder or run; qwen-0.5b by default.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Who wrote the trajectories; qwen-3b by default.")] = None,
    data: Annotated[str | None, typer.Option(help="Trajectory file or distill-data run.")] = None,
    method: Annotated[str | None, typer.Option(help="kd by default; --list shows all.")] = None,
    index: Annotated[
        str | None, typer.Option(help="Index folder or server address, for methods that search and for --eval-data.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Question file: pick the best weights by EM instead of likelihood.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 1e-4 by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the trajectories; 5 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Trajectories per step; 64 by default.")] = None,
    on_collapse: OnCollapseOption = None,
    report_to: ReportToOption = None,
    teacher_8bit: Teacher8bitFlag = None,
    fit: FitFlag = None,
    keep: KeepOption = 1,
    out: OutOption = None,
    resume: ResumeOption = None,
    fresh: FreshFlag = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    episodes: EpisodesFlag = None,
    list_: ListFlag = False,
    describe: DescribeOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Cold-start a student: learn from the trajectories that `dgpo distill-data` kept.

    Example: `dgpo kd --student qwen-0.5b --teacher qwen-3b --epochs 5`
    """
    console = Console(json_output=json, quiet=quiet)
    if list_ or describe:
        console.result(describe_methods(console, describe, rewards=False))
        return

    from dgpo_cli.core.run_dir import require_run_place
    from dgpo_cli.planning.checks import check_kd
    from dgpo_cli.planning.effects import require_effect
    from dgpo_cli.training.run.tracking import parse_trackers
    from dgpo_cli.training.settings import KDSettings

    trackers = parse_trackers(report_to)
    require_run_place(out, resume, fresh=fresh)
    before = recorded(config, set_, "kd")
    require_method(method)
    values: dict[str, Any] = {
        "student": choose(console, "student", student or before.get("student"), "qwen-0.5b", hint="give --student"),
        "teacher": teacher,
        "trajectories": choose(
            console,
            "trajectories",
            data or before.get("trajectories"),
            hint="make some with `dgpo distill-data`, or give --data",
        ),
        "method": method,
        "index": None if index is None else absolute(index),
        "eval_data": None if eval_data is None else absolute(eval_data),
        "lr": lr,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "on_collapse": on_collapse,
        "teacher_8bit": teacher_8bit,
        "fit": fit,
        "seed": seed,
        "device": device,
    }
    settings: KDSettings = settings_from(KDSettings, "kd", config=config, options=set_, values=values)
    settings = with_teacher(console, settings)
    flags = {"index": index, "epochs": epochs, "steps": steps, "teacher_8bit": teacher_8bit}
    require_effect(settings, said_names(set_, "kd", flags))
    settings = _with_index(console, settings, before)
    given = given_names(config, set_, "kd", KDSettings)
    sizes = check_kd(settings, given=given, say=console.info, processes=processes())
    if dry_run:
        show_planned(console, "kd", settings, {"fitted": sizes}, out=out, resume=resume, fresh=fresh)
        return
    from dgpo_cli.training.kd import run_kd

    with training_run(console, "kd", settings, out=out, resume=resume, fresh=fresh, trackers=trackers) as run:
        show = console.info if (console.watched if episodes is None else episodes) else None
        with console.progress(f"kd ({settings.method})", "step") as progress:
            result = run_kd(
                settings, run, keep=keep, progress=progress, warn=console.warn, say=console.info, show=show, sizes=sizes
            )
        follow(console, "kd", run, result, {"index": settings.index, "teacher": settings.teacher})


def _with_index(console: Console, settings: KDSettings, before: dict[str, Any]) -> KDSettings:
    """Where the student searches: the index given, else, for a method that needs one, the remembered; and how."""
    from dataclasses import replace

    from dgpo_cli.training.ingredients import kd_objective, searches
    from dgpo_cli.training.teacher.trajectory_files import recorded_limits

    if settings.index is None and searches(kd_objective(settings)):
        settings = replace(settings, index=choose_index(console, None))
    if settings.index is None:
        return settings
    limits = recorded_limits(Path(settings.trajectories)), "as in the trajectories"
    return as_trained(console, settings, before, limits, settings.student)
