"""`dgpo eval`: a model on QA sets, resumable, compared with the paper's row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.commands.common.going_on import going_on
from dgpo_cli.commands.common.next_steps import choose_bench
from dgpo_cli.commands.common.options import (
    BenchDirOption,
    DeviceOption,
    DryRunFlag,
    FreshFlag,
    JsonFlag,
    OutOption,
    QuietFlag,
    ResumeOption,
    absolute,
    choose_index,
    within_64_bits,
)
from dgpo_cli.commands.common.served import ModelNameOption, ModelUrlOption, choose_model, model_server
from dgpo_cli.commands.common.teacher import EngineOption, FormatOption
from dgpo_cli.commands.common.trained import AskOption, ask_options, tell_reranker, trained_limits
from dgpo_cli.commands.evaluate import run
from dgpo_cli.console import Console
from dgpo_cli.core import shell
from dgpo_cli.core.places import is_file
from dgpo_cli.core.workspace import Workspace


def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run; the last run's best by default.")
    ] = None,
    model_url: ModelUrlOption = None,
    model_name: ModelNameOption = None,
    bench: Annotated[
        str | None,
        typer.Option(help="`all` (the seven), names (nq,hotpotqa,made), or question files; as last time, else all."),
    ] = None,
    bench_dir: BenchDirOption = None,
    index: Annotated[
        str | None,
        typer.Option(help="Index folder or server for all sets, or NAME=DIR,...; the current one by default."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="First N questions of each set.")] = None,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy; 1 is how the paper's released code evaluates.")
    ] = 0.0,
    samples: Annotated[
        int, typer.Option(help="Draws per question, with --temperature above 0: mean EM and pass@k.")
    ] = 1,
    arcap: Annotated[
        bool, typer.Option("--arcap", help="Also the paper's ARCap: answers from gold passages, first query, steps.")
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Nothing is asked: compare two earlier evaluations, question by question."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Passages per search; as the model was trained by default.")
    ] = None,
    max_searches: Annotated[
        int | None, typer.Option(help="Turns that may search, one more may only answer; as trained by default.")
    ] = None,
    engine: EngineOption = None,
    format_: FormatOption = None,
    batch_size: Annotated[int, typer.Option(help="Questions at once.")] = 64,
    seed: Annotated[int, typer.Option(callback=within_64_bits, help="Seed of every draw.")] = 0,
    device: DeviceOption = None,
    options: AskOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    fresh: FreshFlag = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure a model on question sets: exact match with intervals, what was retrieved, why answers were wrong.

    Interrupted, the same command goes on where it stopped. docs/evaluation.md defines every figure.

    Examples: `dgpo eval` · `dgpo eval --model dgpo-qwen-0.5b --bench nq,hotpotqa --limit 200` ·
    `dgpo eval --bench my-questions.jsonl` ·
    `dgpo eval --samples 8 --temperature 1` · `dgpo eval --compare eval-0001 eval-0002` ·
    `dgpo eval --bench-dir questions --index hotpotqa=indexes/hotpot,musique=indexes/musique --bench hotpotqa,musique`
    """
    from dgpo_cli.agent.settings import RolloutSettings
    from dgpo_cli.core.run_dir import require_run_place
    from dgpo_cli.engine.registry import IN_PROCESS, require_engine
    from dgpo_cli.evaluation.suite import EvalSettings, open_benchmarks, parse_benchmarks, parse_indexes
    from dgpo_cli.models.sources import search_limits
    from dgpo_cli.planning.checks import check_eval

    console = Console(json_output=json, quiet=quiet)
    if compare is not None:
        run.compare(console, context, compare)
        return
    require_run_place(out, resume, fresh=fresh)
    asked, bench_dir = choose_bench(console, bench, bench_dir)
    sets = parse_benchmarks(asked)
    chosen = choose_model(console, model)
    where = choose_index(console, index)
    given, asked_for = ask_options(options, top_k=top_k, max_turns=max_searches)
    server = model_server(console, model_url, model_name, asked_for)
    limits = trained_limits(console, given, search_limits(chosen), chosen, RolloutSettings()) | given
    tell_reranker(console, chosen, asked_for.rerank)
    settings = EvalSettings(
        model=chosen,
        benchmarks=tuple(sets),
        indexes={name: absolute(location) for name, location in parse_indexes(where, sets).items()},
        limit=limit,
        temperature=temperature,
        samples=samples,
        arcap=arcap,
        max_searches=limits.pop("max_turns"),
        **limits,  # type: ignore[arg-type]  # numbers, every one
        wave=batch_size,
        seed=seed,
        device=device or "auto",
        engine=engine or IN_PROCESS,
        rerank=asked_for.rerank,
        precision=asked_for.precision,
        format=format_,
        model_url=None if server is None else server.url,
        model_name=None if server is None else server.model,
        server=asked_for.server,
    )
    settings.rollout()  # refuses impossible values before anything is loaded
    require_engine(settings.engine)
    benchmarks = open_benchmarks(settings, sets, bench_dir)
    at_once = check_eval(
        settings.model,
        settings.rollout(),
        [question for benchmark in benchmarks for question in benchmark.questions],
        device=settings.device,
        loaded=settings.engine == IN_PROCESS and server is None,
        samples=settings.samples,
        precision=settings.precision,
        given=run.is_given(context, "batch_size"),
        say=console.info,
        told=dry_run,
        form=settings.format,
    )
    if dry_run:
        run.show_plan(console, settings, benchmarks, going_on(out, resume, fresh=fresh))
        return
    own = absolute(asked) if is_file(asked) else asked
    Workspace().remember(by="dgpo eval", bench=own, bench_dir=None if bench_dir is None else absolute(str(bench_dir)))
    report = run.measure(
        console, settings, benchmarks, server=server, out=out, resume=resume, fresh=fresh, at_once=at_once
    )
    run.show_report(console, report)
    console.next(shell.command("dgpo", "report", Path(report.run)))
    console.result(report.to_json())
