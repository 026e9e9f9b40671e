"""`dgpo eval`: a model on QA sets, resumable, beside the paper's row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.commands.shared import (
    BenchDirOption,
    DeviceOption,
    DryRunFlag,
    FreshFlag,
    JsonFlag,
    OutOption,
    QuietFlag,
    ResumeOption,
    absolute,
    choose,
    show_settings,
    trained_limits,
)
from dgpo_cli.console import Console

if TYPE_CHECKING:
    from dgpo_cli.pipelines.benchmarks import Benchmark, EvalSettings


def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or run; the last run's best by default.")
    ] = None,
    bench: Annotated[str, typer.Option(help="`all` (the seven sets), or names: nq,hotpotqa,tinyworld.")] = "all",
    bench_dir: BenchDirOption = None,
    index: Annotated[
        str | None,
        typer.Option(help="Index folder or server for all sets, or NAME=DIR,...; the current one by default."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="First N questions of each set.")] = None,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy; 1 is how the paper's released code evaluates.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Passages per search; as the model was trained by default.")
    ] = None,
    max_searches: Annotated[
        int | None, typer.Option(help="Turns that may search, one more may only answer; as trained by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    fresh: FreshFlag = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure a model on question sets: exact match, F1, searches, and how often the answer was retrieved.

    Interrupted, the same command goes on where it stopped.

    Examples: `dgpo eval` · `dgpo eval --model dgpo-qwen-0.5b --bench nq,hotpotqa --limit 200` ·
    `dgpo eval --bench-dir questions --index hotpotqa=indexes/hotpot,musique=indexes/musique --bench hotpotqa,musique`
    """
    from dgpo_cli.models.load import search_limits
    from dgpo_cli.pipelines.benchmarks import EvalSettings, open_benchmarks, parse_benchmarks, parse_indexes

    console = Console(json_output=json, quiet=quiet)
    names = parse_benchmarks(bench)
    chosen = choose(console, "model", model, hint="give --model NAME, or train one: `dgpo quickstart`, `dgpo rl`")
    where = choose(console, "index", index, hint="build one with `dgpo index CORPUS`, or give --index DIR")
    given = {name: value for name, value in (("top_k", top_k), ("max_turns", max_searches)) if value is not None}
    limits = trained_limits(console, given, search_limits(absolute(chosen))) | given
    settings = EvalSettings(
        model=absolute(chosen),
        benchmarks=names,
        indexes={name: absolute(location) for name, location in parse_indexes(where, names).items()},
        limit=limit,
        temperature=temperature,
        top_k=limits["top_k"],
        max_searches=limits["max_turns"],
        wave=batch_size,
        seed=seed,
        device=device or "auto",
    )
    settings.rollout()  # refuses impossible values before anything is loaded
    benchmarks = open_benchmarks(settings, bench_dir)
    if dry_run:
        _dry_run(console, settings, benchmarks)
        return
    report = _run(console, settings, benchmarks, out=out, resume=resume, fresh=fresh)
    _show(console, report)
    console.result(report)


def _dry_run(console: Console, settings: EvalSettings, benchmarks: list[Benchmark]) -> None:
    from dgpo_cli.models.load import resolve

    source = resolve(settings.model)
    counts = {benchmark.name: len(benchmark.questions) for benchmark in benchmarks}
    result = show_settings(console, settings) | {"location": source.location, "num_questions": counts}
    console.table(
        "", ["benchmark", "questions", "index"], [[b.name, counts[b.name], b.index.location] for b in benchmarks]
    )
    console.result(result)


def _run(
    console: Console,
    settings: EvalSettings,
    benchmarks: list[Benchmark],
    *,
    out: Path | None,
    resume: Path | None,
    fresh: bool,
) -> dict[str, Any]:
    from dgpo_cli.core.run_dir import RunDir, check_space
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.load import load_model
    from dgpo_cli.pipelines import benchmarks as pipeline
    from dgpo_cli.pipelines.agents import Agent
    from dgpo_cli.train.devices import inference_dtype, training_device

    where = training_device(settings.device)
    loaded = load_model(settings.model, device=where, dtype=inference_dtype(where))
    codec = Codec(loaded.tokenizer, loaded.protocol)
    agent = Agent.of(loaded.model, codec, benchmarks[0].index.retriever, settings.rollout())
    fitted = pipeline.fit_to_context(agent)
    if fitted is not agent:
        limit = fitted.settings.max_observation_tokens
        console.info(
            f"context of {agent.engine.capacity} tokens: search results are cut at {limit} tokens, and counted"
        )
    identity = pipeline.identity(settings, benchmarks, loaded)
    with RunDir.open("eval", identity, out=out, resume=resume, fresh=fresh) as run:
        total, done = sum(len(b.questions) for b in benchmarks), pipeline.answered(run.path, benchmarks)
        check_space(run.path, (total - done) * pipeline.BYTES_PER_QUESTION)
        console.info(f"going on with {run.path}: {done} of {total} answered" if run.resumed else f"run {run.path}")
        meta = {"protocol": loaded.protocol.to_json(), "settings": fitted.settings.to_json(), "run": identity}
        with console.progress("questions", "question") as progress:
            reports = pipeline.run_benchmarks(fitted, benchmarks, run.path, meta, progress)
        report = pipeline.report_json(settings, loaded, fitted, benchmarks, reports) | {"run": str(run.path)}
        pipeline.write_report(run.path, report)
        # With failed searches the run stays unfinished: the same command asks those questions again.
        if report["complete"]:
            run.finish({"em": report["avg"]["em"], "benchmarks": {n: b["em"] for n, b in report["benchmarks"].items()}})
    return report


def _show(console: Console, report: dict[str, Any]) -> None:
    from dgpo_cli.reporting.evaluation import notes, tables

    for table in tables(report):
        console.table(table.title, table.columns, table.rows)
    for note in notes(report):
        console.print(note)
    console.print(f"report: {report['run']}/report.md")
