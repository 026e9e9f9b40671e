"""`dgpo distill-data`: the teacher answers questions in the search loop; its trajectories are kept."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.commands.common.given import given_names, recorded, said_names, settings_from
from dgpo_cli.commands.common.going_on import show_planned
from dgpo_cli.commands.common.next_steps import after_distill_data
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
    choose_index,
    tell_run,
)
from dgpo_cli.commands.common.teacher import (
    EngineOption,
    FormatOption,
    NameOption,
    TokenizerOption,
    UrlOption,
    is_loadable,
    remember_data,
    source_of_text,
    teacher_key,
    teacher_values,
)
from dgpo_cli.commands.common.trained import as_trained
from dgpo_cli.commands.common.training_options import (
    IndexOption,
    QuestionsOption,
    Teacher8bitFlag,
    TeacherOption,
    choose_questions,
)
from dgpo_cli.console import Console
from dgpo_cli.core.figures import percent

if TYPE_CHECKING:
    from dgpo_cli.training.teacher.settings import DistillDataSettings


def distill_data(
    teacher: TeacherOption = None,
    teacher_url: UrlOption = None,
    teacher_name: NameOption = None,
    tokenizer: TokenizerOption = None,
    engine: EngineOption = None,
    format_: FormatOption = None,
    data: QuestionsOption = None,
    index: IndexOption = None,
    demonstrations: Annotated[
        str | None, typer.Option(help="File that says step by step how to answer, instead of a teacher.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="correct (default), searched (right, and the answer was read) or all.")
    ] = None,
    always_search: Annotated[
        bool | None, typer.Option("--always-search", help="Ask for a search before every answer; drop what has none.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Attempts per question.")] = None,
    steps: Annotated[int | None, typer.Option(help="Waves of questions to answer; all by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first N questions.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    teacher_8bit: Teacher8bitFlag = None,
    bench_dir: BenchDirOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    fresh: FreshFlag = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Let a teacher answer questions with the search engine, and keep its right trajectories for the cold start.

    Examples: `dgpo distill-data --teacher qwen-3b --data nq,hotpotqa --limit 20000` ·
    `dgpo distill-data --teacher-url http://gpu-1:8000/v1 --tokenizer qwen-0.5b` ·
    `dgpo distill-data --teacher gold --tokenizer smollm2-135m --data questions.jsonl`
    """
    from dgpo_cli.agent.identity import contents
    from dgpo_cli.core.run_dir import RunDir, require_run_place
    from dgpo_cli.models.sources import search_limits
    from dgpo_cli.planning.checks import check_distill
    from dgpo_cli.planning.effects import require_effect
    from dgpo_cli.training.teacher.distill_data import questions_of, run_distill_data
    from dgpo_cli.training.teacher.settings import DistillDataSettings

    console = Console(json_output=json, quiet=quiet)
    require_run_place(out, resume, fresh=fresh)
    before = recorded(config, set_, "distill-data")
    given = {"teacher": teacher, "url": teacher_url, "name": teacher_name, "tokenizer": tokenizer}
    named = teacher_values(console, before, **given, written=demonstrations)
    values = named | {
        "engine": engine,
        "format": format_,
        "index": choose_index(console, index or before.get("index")),
        "questions": named.get("demonstrations") or choose_questions(console, data or before.get("questions")),
        "bench_dir": None if bench_dir is None else absolute(str(bench_dir)),
        "keep": keep,
        "always_search": always_search,
        "samples": samples,
        "limit": limit,
        "seed": seed,
        "teacher_8bit": teacher_8bit,
        "device": device,
        "rollout": {"stop_repeats": before.get("rollout", {}).get("stop_repeats", True)}
        | ({} if temperature is None else {"temperature": temperature}),
    }
    settings: DistillDataSettings = settings_from(
        DistillDataSettings, "distill-data", config=config, options=set_, values=values
    )
    flags = {"questions": data, "bench_dir": bench_dir, "rollout.temperature": temperature}
    require_effect(settings, said_names(set_, "distill-data", flags))
    settings = as_trained(console, settings, before, search_limits(source_of_text(settings)), source_of_text(settings))
    if steps is not None:
        waves = steps * settings.rollout.wave
        settings = replace(settings, limit=min(settings.limit or waves, waves))
    questions = questions_of(settings)[: settings.limit]
    chosen = given_names(config, set_, "distill-data", DistillDataSettings)
    at_once = check_distill(settings, questions, given=chosen, say=console.info)
    if dry_run:
        more = {"num_questions": len(questions)}
        show_planned(console, "distill-data", settings, more, out=out, resume=resume, fresh=fresh)
        return
    values = asdict(settings)
    with RunDir.open("distill-data", values, out=out, resume=resume, fresh=fresh, inputs=contents(values)) as run:
        tell_run(console, run)
        with console.progress("teacher's episodes", "episode") as progress:
            summary = run_distill_data(
                settings, run, questions=questions, progress=progress, key=teacher_key(), at_once=at_once
            )
        remember_data(settings, run.path)
    row = [summary.episodes, percent(summary.em), summary.kept, summary.searches, summary.tokens]
    console.table("", ["episodes", "EM", "kept", "searches", "tokens"], [row])
    if summary.origin.get("token_ids") == "from text":
        console.info("the server returned text, not token ids, so the trajectories hold no log-probabilities")
    console.print(f"kept trajectories: {summary.path}")
    console.next(*after_distill_data(settings.tokenizer, loadable=is_loadable(settings)))
    console.result(summary.to_json() | {"run": str(run.path)})
