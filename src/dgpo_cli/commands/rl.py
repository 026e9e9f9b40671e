"""`dgpo rl`: reinforcement learning of a search agent, guided by a teacher where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.common.given import given_names, recorded, said_names, settings_from
from dgpo_cli.commands.common.going_on import show_planned
from dgpo_cli.commands.common.methods import describe_methods, require_method
from dgpo_cli.commands.common.options import (
    BenchDirOption,
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
    IndexOption,
    KeepOption,
    ListFlag,
    OnCollapseOption,
    QuestionsOption,
    ReportToOption,
    Teacher8bitFlag,
    TeacherOption,
    choose_questions,
    follow,
    training_run,
    with_teacher,
)
from dgpo_cli.console import Console
from dgpo_cli.launch import processes

if TYPE_CHECKING:
    from dgpo_cli.training.settings import RLSettings


def rl(
    student: Annotated[str | None, typer.Option(help="Where training starts: alias, hub id, folder or run.")] = None,
    teacher: TeacherOption = None,
    method: Annotated[str | None, typer.Option(help="dgpo by default; --list shows all.")] = None,
    data: QuestionsOption = None,
    eval_data: Annotated[str | None, typer.Option(help="Validation questions; held out of --data by default.")] = None,
    index: IndexOption = None,
    kl_form: Annotated[
        str | None, typer.Option(help="k1-reward (the reference), full-loss (exact KL) or another; see --describe.")
    ] = None,
    kl_coef: Annotated[float | None, typer.Option(help="Weight of the KL; 0.001 by default.")] = None,
    kl_gate: Annotated[
        str | None, typer.Option(help="Episodes that follow the teacher: wrong, always or never.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 1e-6 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps; 1000 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions per step; 512 by default.")] = None,
    on_collapse: OnCollapseOption = None,
    report_to: ReportToOption = None,
    teacher_8bit: Teacher8bitFlag = None,
    bench_dir: BenchDirOption = None,
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
    """Improve a student by reward; with DGPO the teacher pulls it where its answer was wrong.

    Defaults are the paper's recipe (1000 steps of 512 episodes).

    Example: `dgpo rl --teacher qwen-3b --teacher-8bit`
    """
    console = Console(json_output=json, quiet=quiet)
    if list_ or describe:
        console.result(describe_methods(console, describe, rewards=True))
        return

    from dgpo_cli.core.run_dir import require_run_place
    from dgpo_cli.models.sources import search_limits
    from dgpo_cli.planning.checks import check_rl
    from dgpo_cli.planning.effects import require_effect
    from dgpo_cli.training.ingredients import agents
    from dgpo_cli.training.run.tracking import parse_trackers
    from dgpo_cli.training.settings import RLSettings

    trackers = parse_trackers(report_to)
    objective = {"kl_form": kl_form, "kl_coef": kl_coef, "kl_gate": kl_gate}
    require_run_place(out, resume, fresh=fresh)
    before = recorded(config, set_, "rl")
    require_method(method)
    values: dict[str, Any] = {
        "student": choose(console, "student", student or before.get("student"), "qwen-0.5b-kd", hint="give --student"),
        "teacher": teacher,
        "index": choose_index(console, index or before.get("index")),
        "questions": choose_questions(console, data or before.get("questions")),
        "bench_dir": None if bench_dir is None else absolute(str(bench_dir)),
        "eval_data": None if eval_data is None else absolute(eval_data),
        "method": method,
        "objective": {name: value for name, value in objective.items() if value is not None},
        "lr": lr,
        "steps": steps,
        "batch_size": batch_size,
        "on_collapse": on_collapse,
        "teacher_8bit": teacher_8bit,
        "fit": fit,
        "seed": seed,
        "device": device,
    }
    settings: RLSettings = settings_from(RLSettings, "rl", config=config, options=set_, values=values)
    settings = with_teacher(console, settings)
    require_effect(settings, said_names(set_, "rl", {"teacher_8bit": teacher_8bit}))
    settings = as_trained(console, settings, before, search_limits(*agents(settings)), settings.student)
    given = given_names(config, set_, "rl", RLSettings)
    sizes = check_rl(settings, given=given, say=console.info, processes=processes())
    if dry_run:
        show_planned(console, "rl", settings, {"fitted": sizes}, out=out, resume=resume, fresh=fresh)
        return
    from dgpo_cli.training.rl import run_rl

    with training_run(console, "rl", settings, out=out, resume=resume, fresh=fresh, trackers=trackers) as run:
        show = console.info if (console.watched if episodes is None else episodes) else None
        with console.progress(f"rl ({settings.method})", "step") as progress:
            result = run_rl(
                settings, run, keep=keep, progress=progress, warn=console.warn, say=console.info, show=show, sizes=sizes
            )
        follow(console, "rl", run, result, {"index": settings.index, "questions": settings.questions})
